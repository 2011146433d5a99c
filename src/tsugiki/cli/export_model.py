"""`tsugiki export-model`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tsugiki.errors import TsugikiError


class StoredAs(StrEnum):
    """What matrices are stored in."""

    f32 = "f32"
    f16 = "f16"
    bf16 = "bf16"
    q8_0 = "q8_0"


def export_model_command(
    model: Annotated[str, typer.Option(help="The model: 'embedded', a model folder, or a hub id.")],
    gguf: Annotated[Path, typer.Option(help="The GGUF file to write; a Modelfile for Ollama is written beside it.")],
    adapter: Annotated[Path | None, typer.Option(help="An adapter to fold in first.")] = None,
    dtype: Annotated[
        StoredAs | None, typer.Option(help="What matrices are stored in (default: as the model's files hold them).")
    ] = None,
    allow_other_base: Annotated[
        bool, typer.Option("--allow-other-base", help="Load an adapter that was trained on another base.")
    ] = False,
    allow_other_tokens: Annotated[
        bool, typer.Option("--allow-other-tokens", help="Write a file that cuts text otherwise than the model does.")
    ] = False,
) -> None:
    """Write a model, with an adapter in it or without, as a GGUF file for llama.cpp and Ollama."""
    try:
        from tsugiki.adapters.gguf_model_export import export_model, merged_model, stored_model
    except ImportError as error:
        raise TsugikiError("this needs the gguf package: pip install 'tsugiki[gguf]'") from error
    from tsugiki.train.progress import RunProgress

    source = stored_model(model) if adapter is None else merged_model(model, adapter, allow_other_base=allow_other_base)
    with RunProgress().stage("exporting", sum(t.numel() for t in source.weights.values())) as advance:
        export = export_model(
            source, gguf, dtype.value if dtype else None, allow_other_tokens=allow_other_tokens, advance=advance
        )
    written, tokens = export.written, export.tokens
    typer.echo(
        f"{export.gguf}: {written.tensors} tensors of a {written.architecture} in {written.stored}, "
        f"{written.bytes / 1e6:,.1f} MB; for Ollama: {export.modelfile}"
    )
    typer.echo(f"tokens: asked {tokens.asked}; {tokens.prompts} prompts, {len(tokens.problems)} differences")
    for line in (*tokens.problems, *tokens.notes):
        typer.echo(f"  {line}")
