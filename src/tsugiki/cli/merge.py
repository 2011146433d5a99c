"""`tsugiki merge`."""

from pathlib import Path
from typing import Annotated

import typer

from tsugiki.cli.adapters.options import parse_weights


def merge_command(
    model: Annotated[str, typer.Option(help="The base: 'embedded', a model folder, a GGUF file, or a hub id.")],
    adapter: Annotated[
        list[str], typer.Option(help="An adapter folder, or a name in the library; repeatable: updates are summed.")
    ],
    out: Annotated[Path, typer.Option(help="A new folder for the merged model.")],
    weights: Annotated[
        str | None, typer.Option(help="A factor on the update of each adapter, as in 0.7,0.3; 1 each if unset.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Text whose perplexity is compared before and after; as in tsugiki eval.")
    ] = None,
    characters: Annotated[
        int | None, typer.Option(min=1, help="Of --data, about so many characters, spread evenly; all if unset.")
    ] = None,
    allow_quantized_base: Annotated[
        bool, typer.Option("--allow-quantized-base", help="Merge into a base in 8 bits too, where much of it is lost.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Compare logits, with the whole model in memory.")
    ] = True,
    allow_base_mismatch: Annotated[
        bool, typer.Option("--allow-base-mismatch", help="Merge an adapter that was trained on another base.")
    ] = False,
) -> None:
    """Fold adapters into their base and write a plain Transformers model, tensor by tensor, in the base's own types."""
    from tsugiki.adapters.library import adapter_folder
    from tsugiki.cli.summary import print_merge
    from tsugiki.io.progress import ProgressDisplay
    from tsugiki.train.workflows.merge import Merge, merge_into_folder

    merge = Merge(
        model,
        [adapter_folder(one) for one in adapter],
        parse_weights(weights) if weights is not None else None,
        allow_base_mismatch,
        allow_quantized_base,
        verify,
        data,
        characters,
    )
    print_merge(out, merge_into_folder(merge, out, ProgressDisplay()))
