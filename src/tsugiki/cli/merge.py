"""`tsugiki merge`."""

from pathlib import Path
from typing import Annotated

import typer


def merge_command(
    model: Annotated[str, typer.Option(help="The base: 'embedded', a model folder, a GGUF file, or a hub id.")],
    adapter: Annotated[Path, typer.Option(help="An adapter folder, such as a run's.")],
    out: Annotated[Path, typer.Option(help="A new folder for the merged model.")],
    allow_other_base: Annotated[
        bool, typer.Option("--allow-other-base", help="Load an adapter that was trained on another base.")
    ] = False,
) -> None:
    """Fold an adapter into its base and write a plain Transformers model."""
    from tsugiki.adapters.merged import write_merged

    report = write_merged(model, adapter, out, allow_other_base=allow_other_base)
    typer.echo(
        f"{out}: the adapter moves the probe's logits by up to {report.shift:.3g}; "
        f"merged, they are the adapted model's to {report.error:.1e}"
    )
