"""`tsugiki adapters import`."""

from pathlib import Path
from typing import Annotated

import typer

from tsugiki.cli.adapters.options import AllowBaseMismatch, Library, NewAdapter
from tsugiki.language import _


def import_command(
    file: Annotated[Path, typer.Argument(help="A LoRA adapter for llama.cpp, as a GGUF file.")],
    model: Annotated[str, typer.Option(help="The adapter's base: 'embedded', a model folder, or a hub id.")],
    out: NewAdapter,
    allow_base_mismatch: AllowBaseMismatch = False,
    library: Library = None,
) -> None:
    """Convert a GGUF adapter to a folder that Tsugiki and PEFT can load."""
    from tsugiki.adapters.library import new_adapter_folder
    from tsugiki.base.gguf.file import require_gguf
    from tsugiki.cli.tables import print_next_command
    from tsugiki.export.gguf_adapter import import_gguf_adapter
    from tsugiki.io.progress import ProgressDisplay

    require_gguf()
    folder = new_adapter_folder(out, library)
    with ProgressDisplay().stage(_("importing"), None):
        lora = import_gguf_adapter(file, model, folder, allow_base_mismatch=allow_base_mismatch)
    typer.echo(_("{folder}: {count} layers, for {model}").format(folder=folder, count=len(lora.layers), model=model))
    print_next_command("chat", str(folder))
