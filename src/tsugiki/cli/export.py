"""`tsugiki export`."""

from pathlib import Path
from typing import Annotated

import typer

from tsugiki.cli.adapters.options import Library
from tsugiki.dtypes import GgufDtype
from tsugiki.errors import TsugikiError


def export_command(
    gguf: Annotated[Path, typer.Option(help="The new GGUF file; a Modelfile for Ollama is written beside it.")],
    adapter: Annotated[
        str | None, typer.Argument(help="A folder, such as a run's, or a name in the library; a whole model if unset.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="The model, or the adapter's base: 'embedded', a folder, a GGUF file, a hub id. "
            "The base that the adapter names if unset."
        ),
    ] = None,
    merged: Annotated[
        bool, typer.Option("--merged", help="Fold the adapter into its base, and export the whole model.")
    ] = False,
    base: Annotated[
        Path | None,
        typer.Option(help="Of an adapter: its base as a GGUF file, to be checked against and named in the Modelfile."),
    ] = None,
    dtype: Annotated[
        GgufDtype | None,
        typer.Option(
            help="Type of the matrices in the file. For an adapter f32 (default) or f16; for a model any, by default "
            "that of its files."
        ),
    ] = None,
    allow_base_mismatch: Annotated[
        bool, typer.Option("--allow-base-mismatch", help="Take an adapter that was trained on another base.")
    ] = False,
    allow_tokenizer_mismatch: Annotated[
        bool,
        typer.Option(
            "--allow-tokenizer-mismatch",
            help="Write a model even if the file gives other tokens than the model's tokenizer.",
        ),
    ] = False,
    library: Library = None,
) -> None:
    """Write an adapter, or a whole model, as a GGUF file for llama.cpp.

    An adapter goes beside its base (llama-cli -m BASE --lora ADAPTER). A whole model is read back, and cuts text into
    tokens as its tokenizer does, or it is not written.
    """
    from tsugiki.base.gguf.file import require_gguf

    require_gguf()
    if adapter is None:
        _refuse(merged, "--merged folds an adapter into a base; name the adapter first")
        _refuse(model is None, "nothing to export: name an adapter, or a model by --model")
    _refuse(base is not None and (merged or adapter is None), "--base goes with an adapter that stays one")
    if adapter is not None and not merged:
        _refuse(dtype in ("bf16", "q8_0"), "an adapter can be exported in f32 or f16; --merged exports the model")
        _export_adapter(adapter, gguf, model, base, dtype, library, allow_base_mismatch)
    else:
        _export_model(adapter, gguf, model, dtype, library, allow_base_mismatch, allow_tokenizer_mismatch)


def _export_adapter(
    adapter: str,
    gguf: Path,
    model: str | None,
    base: Path | None,
    dtype: GgufDtype | None,
    library: Path | None,
    allow_base_mismatch: bool,
) -> None:
    from tsugiki.adapters.library import adapter_folder
    from tsugiki.export.adapter import export_gguf_adapter
    from tsugiki.io.formatting import format_size
    from tsugiki.io.progress import ProgressDisplay

    folder = adapter_folder(adapter, library)
    with ProgressDisplay().stage("export", None):  # the base's fingerprint takes a look at all of its weights
        done = export_gguf_adapter(
            folder, gguf, model, base, "f16" if dtype == "f16" else "f32", allow_base_mismatch=allow_base_mismatch
        )
    typer.echo(
        f"{gguf}: {done.layers} layers, rank {done.ranks}, alpha {done.alpha:g}, {format_size(done.bytes)}; "
        f"llama-cli -m {base or 'BASE.gguf'} --lora {gguf}"
    )
    typer.echo(f"{done.modelfile}: for Ollama before 0.34.1, which took adapters" + ("" if base else "; fill in FROM"))


def _export_model(
    adapter: str | None,
    gguf: Path,
    model: str | None,
    dtype: GgufDtype | None,
    library: Path | None,
    allow_base_mismatch: bool,
    allow_tokenizer_mismatch: bool,
) -> None:
    from tsugiki.adapters.format import read_base
    from tsugiki.adapters.library import adapter_folder
    from tsugiki.base.loading import gguf_path
    from tsugiki.export.model import export_model, merged_model, stored_model
    from tsugiki.io.formatting import format_size
    from tsugiki.io.progress import ProgressDisplay

    folder = None if adapter is None else adapter_folder(adapter, library)
    name = model or (None if folder is None else read_base(folder).name)
    if name is None:
        raise TsugikiError(f"{folder} does not say what base it was trained on; name it by --model")
    source = (
        stored_model(name) if folder is None else merged_model(name, folder, allow_base_mismatch=allow_base_mismatch)
    )
    with ProgressDisplay().stage("exporting", sum(tensor.numel() for tensor in source.weights.values())) as advance:
        export = export_model(
            source,
            gguf,
            dtype,
            original=gguf_path(name),
            allow_tokenizer_mismatch=allow_tokenizer_mismatch,
            advance=advance,
        )
    written, tokens = export.written, export.tokens
    typer.echo(
        f"{export.gguf}: {written.tensors} tensors of a {written.architecture} in {written.dtype}, "
        f"{format_size(written.bytes)}; for Ollama: {export.modelfile}"
    )
    if tokens.tokenized_by is None:
        compared = "only metadata compared (llama-cpp-python is not installed)"
    else:
        compared = f"{tokens.prompts} prompts tokenised by {tokens.tokenized_by}"
    typer.echo(f"tokens: {compared}, {len(tokens.problems)} differences")
    for line in (*tokens.problems, *tokens.notes):
        typer.echo(f"  {line}")


def _refuse(wrong: bool, message: str) -> None:
    if wrong:
        raise TsugikiError(message)
