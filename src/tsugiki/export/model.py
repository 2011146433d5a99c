"""Export a model, with or without an adapter merged into it, for llama.cpp and Ollama.

    source = stored_model("embedded")                    # or merged_model("embedded", adapter)
    export_model(source, Path("tale.gguf"), "q8_0")      # writes tale.gguf and, for Ollama, tale.Modelfile

The files appear only after the GGUF file was read back and found to give the same tokens as the model's tokenizer.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tsugiki.adapters.chat_template import with_chat_template
from tsugiki.adapters.format import load_adapter
from tsugiki.base.config import load_config
from tsugiki.base.loading import load_model, load_tokenizer
from tsugiki.base.model_folder import LazyTensors
from tsugiki.base.resolve import model_folder
from tsugiki.dtypes import GgufDtype
from tsugiki.errors import TsugikiError
from tsugiki.export.architectures import gguf_architecture_of
from tsugiki.export.model_file import ModelSource, WrittenModel, write_model_gguf
from tsugiki.export.ollama import MAX_CONTEXT, modelfile
from tsugiki.export.tokens import TokenComparison, compare_tokens
from tsugiki.io.atomic import new_file
from tsugiki.language import _
from tsugiki.lora.graft import ungraft
from tsugiki.lora.merge import merge

_GGUF_DTYPES: Mapping[torch.dtype, GgufDtype] = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}


@dataclass(frozen=True)
class ModelExport:
    """The result of an export."""

    gguf: Path
    modelfile: Path
    written: WrittenModel
    tokens: TokenComparison


def stored_model(name: str) -> ModelSource:
    """Open a model for export; its tensors are read from its files when they are written.

    Args:
        name: as for `load_model`.

    Raises:
        TsugikiError: there is no such model, its architecture cannot be exported, a weight file is missing or broken,
            or it has no tokenizer.
    """
    folder = model_folder(name)
    config = load_config(name)
    gguf_architecture_of(config)  # raises an error for an unsupported model before its weights are opened
    weights = LazyTensors(folder)
    return ModelSource(name, config, weights, _matrix_dtype(weights, name), load_tokenizer(name), _end_tokens(folder))


def merged_model(name: str, adapter: Path, *, allow_base_mismatch: bool = False) -> ModelSource:
    """Load a model for export and merge an adapter into it, in memory and in float32.

    Args:
        name: as for `load_model`.
        adapter: the adapter's folder.
        allow_base_mismatch: merge an adapter that was trained on another base.

    Raises:
        TsugikiError: as for `stored_model`, `load_adapter` and `merge`.
    """
    source = stored_model(name)
    model = load_model(name)
    load_adapter(model, adapter, allow_base_mismatch=allow_base_mismatch)
    ungraft(merge(model))
    tokenizer = with_chat_template(source.tokenizer, adapter)
    return ModelSource(name, model.config, model.state_dict(), source.dtype, tokenizer, source.ends)


def export_model(
    source: ModelSource,
    out: Path,
    dtype: GgufDtype | None = None,
    *,
    original: Path | None = None,
    allow_tokenizer_mismatch: bool = False,
    advance: Callable[[int], None] = lambda done: None,
) -> ModelExport:
    """Write a model as a GGUF file, compare the file's tokenizer with the model's, and write a Modelfile.

    Args:
        source: the model.
        out: the file; its name must end in `.gguf`. Neither it nor the Modelfile may exist.
        dtype: the type of the matrices in the file; None: that of the source.
        original: the GGUF file that the source's base was converted from; its metadata are copied.
        allow_tokenizer_mismatch: keep a file whose tokenizer differs from the model's.
        advance: called after each tensor with its number of elements.

    Raises:
        TsugikiError: as for `write_model_gguf`, or the tokens differ. Nothing is written then.
    """
    if out.suffix != ".gguf":
        raise TsugikiError(_("{out}: the name of a GGUF file must end in .gguf").format(out=out))
    modelfile_path = out.with_suffix(".Modelfile")
    context = min(source.config.max_position_embeddings, MAX_CONTEXT)
    with new_file(modelfile_path) as temporary_modelfile, new_file(out) as temporary:
        text = modelfile(f"./{out.name}", stop=_stop_texts(source), num_ctx=context)
        temporary_modelfile.write_text(text, encoding="utf-8")
        written = write_model_gguf(source, temporary, dtype, original=original, advance=advance)
        tokens = compare_tokens(source.tokenizer, temporary)
        if tokens.problems and not allow_tokenizer_mismatch:
            more = _(" (and {count} more)").format(count=len(tokens.problems) - 1) if len(tokens.problems) > 1 else ""
            raise TsugikiError(
                _(
                    "the GGUF file would not tokenise text as the model does: {problem}{more}; "
                    "--allow-tokenizer-mismatch writes it anyway"
                ).format(problem=tokens.problems[0], more=more)
            )
    return ModelExport(out, modelfile_path, written, tokens)


def _stop_texts(source: ModelSource) -> list[str]:
    """Return the texts that end an answer; none for a model without a chat template."""
    if source.tokenizer.chat_template is None:
        return []
    ends = dict.fromkeys([source.tokenizer.eos_token_id, *source.ends])
    return [source.tokenizer.decode([token]) for token in ends]


def _matrix_dtype(weights: Mapping[str, Tensor], name: str) -> GgufDtype:
    """Return the dtype of the first matrix."""
    first = next((tensor for tensor in weights.values() if tensor.dim() > 1), None)
    if first is None:
        raise TsugikiError(_("{name} has no matrix and cannot be exported").format(name=name))
    if first.dtype not in _GGUF_DTYPES:
        raise TsugikiError(
            _("{name} has weights of {dtype}; only float32, float16 and bfloat16 can be exported").format(
                name=name, dtype=first.dtype
            )
        )
    return _GGUF_DTYPES[first.dtype]


def _end_tokens(folder: Path) -> tuple[int, ...]:
    """Return the ids of the EOS tokens in a model's generation config; there may be several."""
    from transformers import GenerationConfig

    try:
        ends = GenerationConfig.from_pretrained(folder, local_files_only=True).eos_token_id
    except (OSError, ValueError):
        return ()
    return tuple(ends) if isinstance(ends, list) else () if ends is None else (ends,)
