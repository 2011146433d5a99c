"""`tsugiki adapters import`."""

from pathlib import Path
from typing import Annotated

import typer


def import_command(
    file: Annotated[Path, typer.Argument(help="A LoRA adapter as a GGUF file, as llama.cpp reads it.")],
    model: Annotated[str, typer.Option(help="Its base, of which only the shape is read.")],
    out: Annotated[Path, typer.Option(help="A new folder for the adapter.")],
    allow_other_base: Annotated[
        bool, typer.Option("--allow-other-base", help="Import an adapter that was made for another base.")
    ] = False,
) -> None:
    """Turn a GGUF adapter into a folder that Tsugiki and PEFT load."""
    from tsugiki.adapters.gguf_export import import_gguf_adapter
    from tsugiki.train.progress import RunProgress

    with RunProgress().stage("import", None):
        lora = import_gguf_adapter(file, model, out, allow_other_base=allow_other_base)
    typer.echo(f"{out}: {len(lora.layers)} layers, for {model}")
