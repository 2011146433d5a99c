"""`tsugiki adapters import`."""

from pathlib import Path
from typing import Annotated

import typer

from tsugiki.cli.adapters.options import Library


def import_command(
    file: Annotated[Path, typer.Argument(help="A LoRA adapter as a GGUF file, as llama.cpp reads it.")],
    model: Annotated[str, typer.Option(help="Its base, of which only the shape is read.")],
    out: Annotated[str, typer.Option(help="A new name in the library, or the path of a new folder.")],
    allow_base_mismatch: Annotated[
        bool, typer.Option("--allow-base-mismatch", help="Import an adapter that was made for another base.")
    ] = False,
    library: Library = None,
) -> None:
    """Turn a GGUF adapter into a folder that Tsugiki and PEFT load."""
    from tsugiki.adapters.library import new_adapter_folder
    from tsugiki.base.gguf.file import require_gguf
    from tsugiki.export.adapter import import_gguf_adapter
    from tsugiki.io.progress import ProgressDisplay

    require_gguf()
    folder = new_adapter_folder(out, library)
    with ProgressDisplay().stage("import", None):
        lora = import_gguf_adapter(file, model, folder, allow_base_mismatch=allow_base_mismatch)
    typer.echo(f"{folder}: {len(lora.layers)} layers, for {model}")
