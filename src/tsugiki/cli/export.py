"""`tsugiki export`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Numbers(StrEnum):
    """What numbers are kept in."""

    f32 = "f32"
    f16 = "f16"


def export_command(
    adapter: Annotated[str, typer.Argument(help="An adapter: a folder, such as a run's, or a name in the library.")],
    gguf: Annotated[Path, typer.Option(help="The new GGUF file, for llama.cpp (--lora).")],
    model: Annotated[
        str | None, typer.Option(help="The adapter's base, of which only the shape is read; the one it names if unset.")
    ] = None,
    base: Annotated[
        Path | None, typer.Option(help="The base as a GGUF file: checked against, and named in the Modelfile.")
    ] = None,
    dtype: Annotated[Numbers, typer.Option(help="What numbers are kept in.")] = Numbers.f32,
    allow_other_base: Annotated[
        bool, typer.Option("--allow-other-base", help="Export an adapter that was trained on another base.")
    ] = False,
) -> None:
    """Write an adapter for llama.cpp, and a Modelfile for Ollama beside it."""
    from tsugiki.adapters.gguf_export import export_gguf_adapter
    from tsugiki.adapters.library import adapter_folder
    from tsugiki.train.progress import RunProgress

    folder = adapter_folder(adapter)
    with RunProgress().stage("export", None):  # the base's fingerprint takes a look at all of its weights
        done = export_gguf_adapter(folder, gguf, model, base, dtype.value, allow_other_base=allow_other_base)
    typer.echo(
        f"{gguf}: {done.layers} layers, rank {done.ranks}, alpha {done.alpha:g}, {done.size / 1e6:.1f} MB; "
        f"llama-cli -m {base or 'BASE.gguf'} --lora {gguf}"
    )
    typer.echo(f"{done.modelfile}: for Ollama before 0.34.1, which took adapters" + ("" if base else "; fill in FROM"))
