"""What Transformers makes of a GGUF file, put right where that is another model than llama.cpp's.

Transformers knows the architectures and unpacks the tensors (`from_pretrained(…, gguf_file=…)`). It passes over some
settings and tensors without a word; those of `CHECKED` are set here, and `tests/gguf_base/test_llama_cpp.py` holds
their logits to llama.cpp's.
"""

import functools
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsugiki.architectures import ARCHITECTURES
from tsugiki.base.gguf.file import GgufHeader, GgufTensor, read_header
from tsugiki.base.gguf.names import llama_cpp_names
from tsugiki.base.gguf.tokenizer import KINDS, build_tokenizer
from tsugiki.errors import TsugikiError, error_text, summarise_list

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

CHECKED = ("gemma2", "gemma3", "gpt2", "llama", "phi3", "qwen2", "qwen3")
"""Architectures, by llama.cpp's names, of which logits were compared with llama.cpp's. Mistral's is llama."""
UNCHECKED = (
    *("bloom", "falcon", "gpt-oss", "lfm2", "mamba", "minimax-m2", "nemotron", "qwen2moe", "qwen35", "qwen35moe"),
    "qwen3moe",
)
"""Others that Transformers reads; a warning says that nobody compared them. Of StarCoder 2 and StableLM it leaves the
base of the rotary embedding unread, so that they are not among these.
"""
_ROPE_FACTORS = "rope_freqs.weight"
_NOT_A_MODEL = {
    "adapter": "it is an adapter: give its base as --model",
    "mmproj": "it is the vision half of a model (mmproj): give the file of the language model",
    "imatrix": "it holds statistics for quantising a model",
}


def read_model_header(path: Path) -> GgufHeader:
    """The header of a GGUF file that holds a whole language model which can be unpacked here.

    Raises:
        TsugikiError: as for `read_header`, or it holds something else, a part, an architecture or a packing that cannot
            be read, or no tokenizer.
    """
    header = read_header(path)
    reason = _why_not(header)
    if reason:
        raise TsugikiError(f"{path} is no base model: {reason}")
    return header


def stored_dtype(header: GgufHeader) -> "torch.dtype":
    """Of an unpacked file: float32 or bfloat16 where most of its numbers are that, else float16."""
    import torch

    amounts: Counter[str] = Counter()
    for tensor in header.tensors:
        amounts[tensor.type.name] += prod(tensor.shape)
    commonest = amounts.most_common(1)[0][0]
    return {"F32": torch.float32, "BF16": torch.bfloat16}.get(commonest, torch.float16)


def write_folder(path: Path, header: GgufHeader, folder: Path, advance: Callable[[], None]) -> None:
    """Write the model of a GGUF file as Transformers stores one.

    Args:
        path: the file.
        header: its header.
        folder: an empty one.
        advance: called as each tensor is unpacked.

    Raises:
        TsugikiError: Transformers cannot read the file, or not all of it.
        OSError: the folder cannot be written.
    """
    from safetensors import SafetensorError

    with _counted(advance), _read_once():
        try:
            tokenizer = build_tokenizer(path, header, folder)
            model = _unpack(path, header, folder)
        except (OSError, TsugikiError):
            raise
        except Exception as error:  # anything at all, where a file is not what two libraries expect
            raise TsugikiError(f"{path} cannot be read: {error_text(error)}") from error
        tokenizer.save_pretrained(folder)
        try:
            model.save_pretrained(folder)
        except SafetensorError as error:  # safetensors says so when the disk is full
            raise OSError(str(error)) from error


def _why_not(header: GgufHeader) -> str | None:
    """Why the file cannot be a base, in words that follow a colon."""
    kind = header.metadata.get("general.type", "adapter" if "adapter.type" in header.metadata else "model")
    if header.architecture == "clip":
        kind = "mmproj"
    if kind != "model":
        return _NOT_A_MODEL.get(str(kind), f"it says that it is a {kind}")
    parts = header.metadata.get("split.count", 1)
    if parts > 1:
        number = header.metadata.get("split.no", 0) + 1
        return f"it is part {number} of {parts}; join them first (llama-gguf-split --merge)"
    readable = sorted({*CHECKED, *UNCHECKED})
    if header.architecture not in readable:
        named = f"its architecture, {header.architecture}," if header.architecture else "its architecture"
        return f"{named} is none that can be read; these can: {', '.join(readable)}"
    stretch = header.setting("rope.scaling.type", "none")
    if header.architecture in CHECKED and stretch not in ("none", "linear"):
        return f"it stretches positions in a way ({stretch}) that Transformers does not read from such a file"
    tokenizer = header.metadata.get("tokenizer.ggml.model")
    if not tokenizer or "tokenizer.ggml.tokens" not in header.metadata:
        return "it has no tokenizer"
    if tokenizer not in KINDS:
        return f"its tokenizer is of the kind {tokenizer}, and {' and '.join(KINDS)} can be read"
    if not header.tensors:
        return "it has no tensors (it is a vocabulary alone)"
    return _not_unpackable(header.tensors)


def _not_unpackable(tensors: tuple[GgufTensor, ...]) -> str | None:
    """Which tensors are packed in a way that gguf cannot undo, tried on one block of each."""
    import numpy as np
    from gguf import GGML_QUANT_SIZES, dequantize

    for type in {tensor.type for tensor in tensors}:
        try:
            dequantize(np.zeros((1, GGML_QUANT_SIZES[type][1]), np.uint8), type)
        except NotImplementedError:
            names = [tensor.name for tensor in tensors if tensor.type == type]
            return f"the gguf package cannot unpack {type.name}, which these are packed in: {summarise_list(names)}"
    return None


def _unpack(path: Path, header: GgufHeader, folder: Path) -> "PreTrainedModel":
    """The model, its weights plain."""
    from transformers import AutoModelForCausalLM, GgufConfig

    model, found = AutoModelForCausalLM.from_pretrained(
        folder,
        gguf_file=str(path.resolve()),
        config=_read_config(path, header, folder),
        dtype=stored_dtype(header),
        quantization_config=GgufConfig(dequantize=True),
        output_loading_info=True,
    )
    if found["missing_keys"]:  # transformers fills these with random numbers and goes on
        raise TsugikiError(f"{path} is not a whole model: it lacks {summarise_list(sorted(found['missing_keys']))}")
    _check_all_read(path, header, set(model.state_dict()))
    model.config.__dict__.pop("_model_name_or_path", None)
    ends = [header.metadata.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("eos", "eot", "eom")]
    model.generation_config.eos_token_id = sorted({end for end in ends if end is not None})
    return model


def _read_config(path: Path, header: GgufHeader, folder: Path) -> "PretrainedConfig":
    """Transformers' settings, with those that it leaves at their defaults."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, gguf_file=str(path.resolve()))
    if header.architecture not in CHECKED:
        warnings.warn(
            f"{path.name}: what Transformers makes of {header.architecture} was not compared with llama.cpp",
            stacklevel=2,
        )
        return config
    for name, value in _unread_settings(header, config).items():
        setattr(config, name, value)
    _set_rope(path, header, config)
    return config


def _unread_settings(header: GgufHeader, config: "PretrainedConfig") -> dict[str, Any]:
    settings: dict[str, Any] = {}
    if header.architecture == "gpt2":
        settings["n_positions"] = header.setting("context_length")
    width = header.setting("attention.key_length")
    if width is not None and hasattr(config, "head_dim"):
        settings["head_dim"] = width
    layers_of_27b = ARCHITECTURES[config.model_type].layers_of_27b
    if layers_of_27b is not None:
        # Gemma's 27B model scales attention scores by hidden_size / heads, its smaller models by head_dim.
        largest = config.num_hidden_layers == layers_of_27b
        per_head = config.hidden_size // config.num_attention_heads
        settings["query_pre_attn_scalar"] = per_head if largest else width or config.head_dim
    if header.architecture == "gemma2":
        for name in ("attn_logit_softcapping", "final_logit_softcapping"):
            settings[name] = header.setting(name, getattr(config, name))
    return settings


def _set_rope(path: Path, header: GgufHeader, config: "PretrainedConfig") -> None:
    """How positions are stretched: by one factor, or by one for each frequency, which is Transformers' longrope."""
    factor = header.setting("rope.scaling.factor") or header.setting("rope.scale_linear", 0)
    by_factor = factor not in (0, 1) and header.setting("rope.scaling.type") != "none"
    stretch: dict[str, Any] = {"rope_type": "linear", "factor": factor} if by_factor else {}
    if any(tensor.name == _ROPE_FACTORS for tensor in header.tensors):
        factors = _read_vector(path, header, _ROPE_FACTORS)
        stretch = {
            "rope_type": "longrope",
            "short_factor": factors,
            "long_factor": factors,
            "attention_factor": 1.0,
            "original_max_position_embeddings": config.max_position_embeddings,
        }
    rope = getattr(config, "rope_parameters", None)
    if stretch and rope is not None:
        rope.get("full_attention", rope).update(stretch)


def _read_vector(path: Path, header: GgufHeader, name: str) -> list[float]:
    import numpy as np

    tensor = next(tensor for tensor in header.tensors if tensor.name == name)
    if tensor.type.name != "F32":
        raise TsugikiError(f"{path} cannot be read: {name} is {tensor.type.name}, not F32")
    values = np.fromfile(path, np.dtype("<f4"), prod(tensor.shape), offset=tensor.begin)
    return [float(value) for value in values]


@contextmanager
def _counted(advance: Callable[[], None]) -> Iterator[None]:
    """Transformers' bars, which it draws whether anyone looks or not, are not drawn; that over tensors calls this."""
    from transformers import modeling_gguf_pytorch_utils as transformers_gguf
    from transformers.utils import logging as transformers_logging

    def count(tensors: Any, **_: Any) -> Iterator[Any]:
        for tensor in tensors:
            yield tensor
            advance()

    shown, bar = transformers_logging.is_progress_bar_enabled(), transformers_gguf.tqdm
    transformers_logging.disable_progress_bar()
    transformers_gguf.tqdm = count
    try:
        yield
    finally:
        transformers_gguf.tqdm = bar
        if shown:
            transformers_logging.enable_progress_bar()


@contextmanager
def _read_once() -> Iterator[None]:
    """Transformers opens the file by gguf's reader for the settings, and again for the tensors: let it be one reader.

    Each takes ten seconds for a vocabulary of 262,144 tokens.
    """
    import gguf

    reader = gguf.GGUFReader
    gguf.GGUFReader = functools.cache(reader)  # type: ignore[assignment, misc]
    try:
        yield
    finally:
        gguf.GGUFReader = reader  # type: ignore[misc]


def _check_all_read(path: Path, header: GgufHeader, names: set[str]) -> None:
    """Transformers passes over what it has no place for."""
    if header.architecture not in CHECKED:
        return
    read = set(llama_cpp_names(header.architecture, header.setting("block_count"), names).values())
    unread = [tensor.name for tensor in header.tensors if tensor.name not in {*read, _ROPE_FACTORS}]
    if unread:
        raise TsugikiError(f"{path} cannot be read: Transformers has no place for {summarise_list(sorted(unread))}")
