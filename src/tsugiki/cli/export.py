"""`tsugiki export`."""

from pathlib import Path
from typing import Annotated

import typer

from tsugiki.cli.adapters.options import Library
from tsugiki.dtypes import GgufDtype
from tsugiki.errors import TsugikiError
from tsugiki.language import _


def export_command(
    gguf: Annotated[
        Path, typer.Option(help="The new GGUF file. A Modelfile for Ollama is written to the same folder.")
    ],
    adapter: Annotated[
        str | None,
        typer.Argument(
            help="An adapter: a folder, such as a run's, or a name in the library. If unset, a model is exported."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="The model, or the adapter's base: 'embedded', a folder, a GGUF file or a hub id. "
            "By default the base that the adapter names."
        ),
    ] = None,
    merged: Annotated[
        bool, typer.Option("--merged", help="Merge the adapter into its base and export the model.")
    ] = False,
    base: Annotated[
        Path | None,
        typer.Option(
            help="The adapter's base as a GGUF file. It is checked that the adapter fits, and the Modelfile names it."
        ),
    ] = None,
    dtype: Annotated[
        GgufDtype | None,
        typer.Option(
            help="Type of the matrices in the file. For an adapter f32 (default) or f16; for a model any, by default "
            "that of its files."
        ),
    ] = None,
    allow_base_mismatch: Annotated[
        bool, typer.Option("--allow-base-mismatch", help="Export an adapter that was trained on another base.")
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
    """Export an adapter or a model as a GGUF file for llama.cpp.

    llama.cpp loads an adapter together with its base (llama-cli -m BASE --lora ADAPTER). A model is written only if the
    file tokenises text as the model's own tokenizer does.
    """
    from tsugiki.base.gguf.file import require_gguf

    require_gguf()
    if adapter is None:
        _require(not merged, _("--merged requires an adapter, which is merged into its base"))
        _require(model is not None, _("nothing to export: name an adapter, or pass a model as --model"))
    if adapter is None or merged:
        _require(base is None, _("--base requires an adapter and cannot be combined with --merged"))
        _export_model(adapter, gguf, model, dtype, library, allow_base_mismatch, allow_tokenizer_mismatch)
    else:
        _require(
            dtype not in ("bf16", "q8_0"), _("an adapter can be exported in f32 or f16; --merged exports the model")
        )
        _export_adapter(adapter, gguf, model, base, dtype, library, allow_base_mismatch)


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
    from tsugiki.export.gguf_adapter import export_gguf_adapter
    from tsugiki.io.formatting import format_size
    from tsugiki.io.progress import ProgressDisplay

    folder = adapter_folder(adapter, library)
    with ProgressDisplay().stage(_("exporting"), None):  # computing the base's fingerprint reads all of its weights
        done = export_gguf_adapter(
            folder, gguf, model, base, "f16" if dtype == "f16" else "f32", allow_base_mismatch=allow_base_mismatch
        )
    typer.echo(
        _("{gguf}: {layers} layers, rank {ranks}, alpha {alpha:g}, {size}; llama-cli -m {base} --lora {gguf}").format(
            gguf=gguf,
            layers=done.layers,
            ranks=done.ranks,
            alpha=done.alpha,
            size=format_size(done.bytes),
            base=base or "BASE.gguf",
        )
    )
    line = _("{modelfile}: for Ollama before version 0.34.1")
    if not base:
        line = _("{modelfile}: for Ollama before version 0.34.1; fill in the base at FROM")
    typer.echo(line.format(modelfile=done.modelfile))


def _export_model(
    adapter: str | None,
    gguf: Path,
    model: str | None,
    dtype: GgufDtype | None,
    library: Path | None,
    allow_base_mismatch: bool,
    allow_tokenizer_mismatch: bool,
) -> None:
    from tsugiki.adapters.library import adapter_folder
    from tsugiki.adapters.named_base import named_base
    from tsugiki.base.resolve import gguf_path
    from tsugiki.export.gguf_model import export_model, merged_model, stored_model
    from tsugiki.io.formatting import format_size
    from tsugiki.io.progress import ProgressDisplay

    folder = None if adapter is None else adapter_folder(adapter, library)
    name = model or (None if folder is None else named_base(folder))
    if name is None:
        raise TsugikiError(
            _("{folder} does not name the base that it was trained on; pass it as --model").format(folder=folder)
        )
    source = (
        stored_model(name) if folder is None else merged_model(name, folder, allow_base_mismatch=allow_base_mismatch)
    )
    with ProgressDisplay().stage(_("exporting"), sum(tensor.numel() for tensor in source.weights.values())) as advance:
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
        _("{gguf}: {tensors} tensors of a {architecture} in {dtype}, {size}; for Ollama: {modelfile}").format(
            gguf=export.gguf,
            tensors=written.tensors,
            architecture=written.architecture,
            dtype=written.dtype,
            size=format_size(written.bytes),
            modelfile=export.modelfile,
        )
    )
    if tokens.tokenized_by is None:
        compared = _("only metadata compared (llama-cpp-python is not installed)")
    else:
        compared = _("{count} prompts tokenised by {by}").format(count=tokens.prompts, by=tokens.tokenized_by)
    typer.echo(_("tokens: {compared}, {count} differences").format(compared=compared, count=len(tokens.problems)))
    for line in (*tokens.problems, *tokens.notes):
        typer.echo(f"  {line}")


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise TsugikiError(message)
