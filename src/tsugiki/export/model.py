"""A model of Transformers, with an adapter in it or without, exported for llama.cpp and Ollama.

    source = stored_model("embedded")                    # or merged_model("embedded", adapter)
    export_model(source, Path("tale.gguf"), "q8_0")      # tale.gguf and, for Ollama, tale.Modelfile

Neither file appears before the first was read back and found to cut text as the model's tokenizer does.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from tsugiki.adapters.format import load_adapter
from tsugiki.base.loading import load_model, load_tokenizer, model_folder
from tsugiki.base.model_folder import LazyTensors
from tsugiki.errors import TsugikiError, error_text
from tsugiki.export.architectures import gguf_architecture_of
from tsugiki.export.model_file import Source, Stored, Written, write_model_gguf
from tsugiki.export.ollama import CONTEXT, modelfile
from tsugiki.export.tokens import TokenComparison, compare_tokens
from tsugiki.io.atomic import new_file
from tsugiki.lora.graft import ungraft
from tsugiki.lora.merge import merge

_NAMES: Mapping[torch.dtype, Stored] = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}


@dataclass(frozen=True)
class Export:
    """What was exported."""

    gguf: Path
    modelfile: Path
    written: Written
    tokens: TokenComparison


def stored_model(name: str) -> Source:
    """The model called `name` (as `load_model` takes it), its tensors where they are.

    Raises:
        TsugikiError: no such model, a missing or broken shard, or no tokenizer.
    """
    from transformers import AutoConfig

    folder = model_folder(name)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise TsugikiError(f"{name} cannot be read: {error_text(error)}") from error
    gguf_architecture_of(config)  # what cannot be exported is said before anything is read
    weights = LazyTensors(folder)
    return Source(name, config, weights, _mostly(weights, name), load_tokenizer(name), _ends(folder))


def merged_model(name: str, adapter: Path, *, allow_other_base: bool = False) -> Source:
    """The model called `name` with an adapter folded in, whole in memory in float32.

    Raises:
        TsugikiError: as for `stored_model`, `load_adapter` and `merge`.
    """
    source = stored_model(name)
    model = load_model(name)
    load_adapter(model, adapter, allow_other_base=allow_other_base)
    ungraft(merge(model))
    return Source(name, model.config, model.state_dict(), source.stored, source.tokenizer, source.ends)


def export_model(
    source: Source,
    out: Path,
    stored: Stored | None = None,
    *,
    original: Path | None = None,
    allow_other_tokens: bool = False,
    advance: Callable[[int], None] = lambda done: None,
) -> Export:
    """Write a model as a GGUF file, ask how it cuts text, and write a Modelfile beside it.

    Args:
        source: the model.
        out: the file, whose name ends in `.gguf`; neither it nor the Modelfile may be there.
        stored: what its matrices are stored in; as the source where nothing is said.
        original: the GGUF file that the source's base came from; its metadata are kept.
        allow_other_tokens: keep a file that cuts text otherwise than the model's tokenizer.
        advance: called with how many numbers each tensor has, once it is written.

    Raises:
        TsugikiError: as for `write_model_gguf`; or the file cuts text otherwise. Nothing is written then.
    """
    if out.suffix != ".gguf":
        raise TsugikiError(f"{out} is to be a GGUF file: give it a name that ends in .gguf")
    beside = out.with_suffix(".Modelfile")
    context = min(source.config.max_position_embeddings, CONTEXT)
    with new_file(beside) as text, new_file(out) as part:
        text.write_text(modelfile(f"./{out.name}", stop=_stops(source), num_ctx=context), encoding="utf-8")
        written = write_model_gguf(source, part, stored, original=original, advance=advance)
        tokens = compare_tokens(source.tokenizer, part)
        if tokens.problems and not allow_other_tokens:
            more = f" (and {len(tokens.problems) - 1} more such)" if len(tokens.problems) > 1 else ""
            raise TsugikiError(
                f"the export would not read text as the model does: {tokens.problems[0]}{more}; --allow-other-tokens "
                "writes it all the same"
            )
    return Export(out, beside, written, tokens)


def _stops(source: Source) -> list[str]:
    """Texts that end an answer; a model that has no turns just ends."""
    if source.tokenizer.chat_template is None:
        return []
    ends = dict.fromkeys([source.tokenizer.eos_token_id, *source.ends])
    return [source.tokenizer.decode([token]) for token in ends]


def _mostly(weights: LazyTensors, name: str) -> Stored:
    """What the first matrix is stored in."""
    first = next((tensor for tensor in weights.values() if tensor.dim() > 1), None)
    if first is None or first.dtype not in _NAMES:
        what = "no matrix" if first is None else f"{first.dtype}, neither 16 nor 32 bits of floating point"
        raise TsugikiError(f"{name} holds {what}, and cannot be exported")
    return _NAMES[first.dtype]


def _ends(folder: Path) -> tuple[int, ...]:
    from transformers import GenerationConfig

    try:
        ends = GenerationConfig.from_pretrained(folder, local_files_only=True).eos_token_id
    except (OSError, ValueError):
        return ()
    return tuple(ends) if isinstance(ends, list) else () if ends is None else (ends,)
