"""Convert a GGUF file to a folder in Hugging Face's format.

transformers reads the architectures and dequantises the tensors (`from_pretrained(…, gguf_file=…)`), but it ignores
some settings and tensors without a warning, and the model then differs from llama.cpp's. For the architectures in
`VERIFIED` these settings are corrected here; `tests/base/gguf/test_llama_cpp.py` compares the logits with llama.cpp's.

It builds a tokenizer from the file's tokens and merges as well, but for some files it splits text before the merges
differently from llama.cpp. That is corrected here, with a warning if the file names an unknown way of splitting; the
same test compares the tokens of texts.
"""

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from math import prod
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tsugiki.annotations import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from tsugiki.base.gguf.file import GgufHeader, GgufTensor, llama_cpp_names, read_header
from tsugiki.errors import TsugikiError, error_text, summarise_list, warn_caller
from tsugiki.io.progress import hidden_progress_bars
from tsugiki.language import _, marked
from tsugiki.model.architectures import ARCHITECTURES
from tsugiki.model.meta import meta_model

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer


VERIFIED = ("gemma2", "gemma3", "gpt2", "llama", "phi3", "qwen2", "qwen3")
"""Architectures, by llama.cpp's names, whose logits were compared with llama.cpp's. Mistral's name is llama."""
UNVERIFIED = (
    *("bloom", "falcon", "gpt-oss", "lfm2", "mamba", "minimax-m2", "nemotron"),
    *("qwen2moe", "qwen3moe", "qwen35", "qwen35moe"),
)
"""Architectures that transformers can read and that were not compared; loading one gives a warning. StarCoder 2 and
StableLM are left out, because transformers ignores the base frequency of their rotary embedding."""

_ROPE_FACTORS = "rope_freqs.weight"
_NOT_A_MODEL = {
    "adapter": marked("it is an adapter; pass its base as --model"),
    "mmproj": marked("it is the vision part of a model (mmproj); give the file of the language model"),
    "imatrix": marked("it holds statistics for quantising a model"),
}


def read_model_header(path: Path) -> GgufHeader:
    """Read the header of a GGUF file, and check that the file holds a language model that can be converted."""
    header = read_header(path)
    reason = _unsupported_reason(header)
    if reason:
        raise TsugikiError("{path} cannot be used as a base model: {reason}", path=path, reason=reason)
    return header


def conversion_dtype(header: GgufHeader) -> "torch.dtype":
    """Return the dtype of a converted file: float32 or bfloat16 if most of its values have that type, else float16."""
    import torch

    elements: Counter[str] = Counter()
    for tensor in header.tensors:
        elements[tensor.type.name] += prod(tensor.shape)
    commonest = elements.most_common(1)[0][0]
    return {"F32": torch.float32, "BF16": torch.bfloat16}.get(commonest, torch.float16)


def write_folder(path: Path, header: GgufHeader, folder: Path, advance: Callable[[], None]) -> None:
    """Write the model and the tokenizer of a GGUF file to an empty folder; `advance` is called after each tensor."""
    with hidden_progress_bars(), _tensor_progress(advance), _once("GGUFReader"), _once("get_tensor_name_map"):
        with _reading_errors(path):
            tokenizer = build_tokenizer(path, header, folder)
            model = _load_dequantised(path, header, folder)
        tokenizer.save_pretrained(folder)
        model.save_pretrained(folder)


def write_settings(path: Path, header: GgufHeader, folder: Path) -> None:
    """Write the config and the tokenizer of a GGUF file to an empty folder, without its weights."""
    with hidden_progress_bars(), _once("GGUFReader"):
        with _reading_errors(path):
            tokenizer = build_tokenizer(path, header, folder)
            config = _read_config(path, header, folder)
            config.dtype = conversion_dtype(header)
            model = meta_model(config)
            _complete_settings(model, header)
            _check_tensors(path, header, model)
        tokenizer.save_pretrained(folder)
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)


@contextmanager
def _reading_errors(path: Path) -> Iterator[None]:
    """Convert exceptions of transformers and gguf for an unreadable file to a `TsugikiError`."""
    try:
        yield
    except (OSError, TsugikiError):
        raise
    except Exception as error:
        raise TsugikiError("{path} cannot be read: {error}", path=path, error=error_text(error)) from error


def not_a_whole_model(header: GgufHeader) -> str | None:
    """Return why a file is not all of a language model, as a clause for a message; None if it is."""
    kind = header.metadata.get("general.type", "adapter" if "adapter.type" in header.metadata else "model")
    if header.architecture == "clip":
        kind = "mmproj"
    if kind != "model":
        known = _NOT_A_MODEL.get(str(kind))
        return _(known) if known else _("its type is {kind}", kind=error_text(kind, 100))
    parts = header.metadata.get("split.count", 1)
    if parts not in (0, 1):
        number = header.metadata.get("split.no", 0)
        which = (
            _("{number:,} of {count:,}", number=number + 1, count=parts)
            if isinstance(parts, int) and isinstance(number, int)
            else _("of several")
        )
        return _("it is part {which}; join the parts first (llama-gguf-split --merge)", which=which)
    if not header.metadata.get("tokenizer.ggml.model") or "tokenizer.ggml.tokens" not in header.metadata:
        return _("it has no tokenizer")
    return None if header.tensors else _("it has no tensors (it is a vocabulary only)")


def _unsupported_reason(header: GgufHeader) -> str | None:
    """Return why a file cannot be a base model, as a clause for a message; None if it can."""
    if reason := not_a_whole_model(header):
        return reason
    supported = sorted({*VERIFIED, *UNVERIFIED})
    if header.architecture not in supported:
        name = error_text(header.architecture, 100) or _("not named")
        return _(
            "its architecture ({name}) is not supported; these are: {supported}",
            name=name,
            supported=", ".join(supported),
        )
    scaling = header.setting("rope.scaling.type", "none")
    if header.architecture in VERIFIED and scaling not in ("none", "linear"):
        return _("its RoPE scaling ({scaling}) is not supported in GGUF files", scaling=error_text(scaling, 100))
    tokenizer = header.metadata["tokenizer.ggml.model"]
    if tokenizer not in SUPPORTED_TOKENIZERS:
        known = _(" and ").join(SUPPORTED_TOKENIZERS)
        return _(
            "its tokenizer has the type {tokenizer}, and {known} are supported",
            tokenizer=error_text(tokenizer, 100),
            known=known,
        )
    return _unsupported_quantisation(header.tensors)


def _unsupported_quantisation(tensors: tuple[GgufTensor, ...]) -> str | None:
    """Return which tensors the gguf package cannot dequantise, by a trial with one block of each type."""
    import numpy as np
    from gguf import GGML_QUANT_SIZES, dequantize

    for type in {tensor.type for tensor in tensors}:
        try:
            dequantize(np.zeros((1, GGML_QUANT_SIZES[type][1]), np.uint8), type)
        except NotImplementedError:
            names = [tensor.name for tensor in tensors if tensor.type == type]
            return _(
                "the gguf package cannot dequantise {name}, the type of {names}",
                name=type.name,
                names=summarise_list(names),
            )
    return None


def _load_dequantised(path: Path, header: GgufHeader, folder: Path) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM, GgufConfig

    model, loading_info = AutoModelForCausalLM.from_pretrained(
        folder,
        gguf_file=str(path.resolve()),
        config=_read_config(path, header, folder),
        dtype=conversion_dtype(header),
        quantization_config=GgufConfig(dequantize=True),
        output_loading_info=True,
        use_kernels=False,
    )
    # transformers fills missing weights with random values and only warns.
    refuse_missing(path, sorted(loading_info["missing_keys"]))
    _check_all_tensors_read(path, header, set(model.state_dict()))
    _complete_settings(model, header)
    return model


def _complete_settings(model: PreTrainedModel, header: GgufHeader) -> None:
    """Set what transformers does not read from the file: all tokens that end a text."""
    model.config.__dict__.pop("_model_name_or_path", None)
    ends = [header.metadata.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("eos", "eot", "eom")]
    model.generation_config.eos_token_id = sorted({end for end in ends if end is not None})


def _read_config(path: Path, header: GgufHeader, folder: Path) -> PretrainedConfig:
    """Read the config as transformers does, and set what transformers leaves at its default."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, gguf_file=str(path.resolve()))
    if header.architecture not in VERIFIED:
        message = _(
            "{name}: the architecture {architecture}, as transformers reads it, was not compared with llama.cpp's",
            name=path.name,
            architecture=header.architecture,
        )
        warn_caller(message)
        return config
    for name, value in _ignored_settings(header, config).items():
        setattr(config, name, value)
    _set_rope_scaling(path, header, config)
    return config


def _ignored_settings(header: GgufHeader, config: PretrainedConfig) -> dict[str, Any]:
    """Return the config fields that transformers does not take from the file, with the values that they should have."""
    settings: dict[str, Any] = {}
    if header.architecture == "gpt2":
        settings["n_positions"] = header.setting("context_length")
    head_dim = header.setting("attention.key_length")
    if head_dim is not None and hasattr(config, "head_dim"):
        settings["head_dim"] = head_dim
    layers_of_27b = ARCHITECTURES[config.model_type].layers_of_27b
    if layers_of_27b is not None:
        # Gemma's 27B model scales attention scores by hidden_size / heads, its smaller models by head_dim.
        largest = config.num_hidden_layers == layers_of_27b
        per_head = config.hidden_size // config.num_attention_heads
        settings["query_pre_attn_scalar"] = per_head if largest else head_dim or config.head_dim
    if header.architecture == "gemma2":
        for name in ("attn_logit_softcapping", "final_logit_softcapping"):
            settings[name] = header.setting(name, getattr(config, name))
    return settings


def _set_rope_scaling(path: Path, header: GgufHeader, config: PretrainedConfig) -> None:
    """Set the file's RoPE scaling: one factor, or one factor for each frequency (longrope in transformers)."""
    factor = header.setting("rope.scaling.factor") or header.setting("rope.scale_linear", 0)
    is_linear = factor not in (0, 1) and header.setting("rope.scaling.type") != "none"
    scaling: dict[str, Any] = {"rope_type": "linear", "factor": factor} if is_linear else {}
    if any(tensor.name == _ROPE_FACTORS for tensor in header.tensors):
        factors = _read_vector(path, header, _ROPE_FACTORS)
        scaling = {
            "rope_type": "longrope",
            "short_factor": factors,
            "long_factor": factors,
            "attention_factor": 1.0,
            "original_max_position_embeddings": config.max_position_embeddings,
        }
    rope = getattr(config, "rope_parameters", None)
    if scaling and rope is not None:
        rope.get("full_attention", rope).update(scaling)


def _read_vector(path: Path, header: GgufHeader, name: str) -> list[float]:
    import numpy as np

    tensor = next(tensor for tensor in header.tensors if tensor.name == name)
    if tensor.type.name != "F32":
        raise TsugikiError(
            "{path} cannot be read: {name} is {kind}, not F32", path=path, name=name, kind=tensor.type.name
        )
    values = np.fromfile(path, np.dtype("<f4"), prod(tensor.shape), offset=tensor.begin)
    return [float(value) for value in values]


@contextmanager
def _replaced(module: ModuleType, name: str, value: object) -> Iterator[None]:
    """Replace an attribute of a module within the block."""
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def _tensor_progress(advance: Callable[[], None]) -> AbstractContextManager[None]:
    """Replace the progress bar that transformers draws over the tensors of a GGUF file by calls of `advance`."""
    from transformers import modeling_gguf_pytorch_utils as transformers_gguf

    def count(tensors: Any, **_: Any) -> Iterator[Any]:
        for tensor in tensors:
            yield tensor
            advance()

    return _replaced(transformers_gguf, "tqdm", count)


def _once(name: str) -> AbstractContextManager[None]:
    """Let transformers make this object of the gguf package once for a file.

    It would make a reader for the settings and another one for the tensors, and each takes ten seconds for a vocabulary
    of 262,144 tokens; and a map of all names for every module of the model, which takes 3 s for 30 blocks.
    """
    import gguf

    return _replaced(gguf, name, functools.cache(getattr(gguf, name)))


def _check_tensors(path: Path, header: GgufHeader, model: PreTrainedModel) -> None:
    """Check in the header that a file has all tensors of its model, with the right shapes, and no others.

    Only files of an architecture in `VERIFIED` are checked.
    """
    if header.architecture not in VERIFIED:
        return
    parameters = model.state_dict()
    _check_all_tensors_read(path, header, set(parameters))
    shapes = {tensor.name: tensor.shape for tensor in header.tensors}
    names = llama_cpp_names(header.architecture, header.setting("block_count"), parameters)
    tied = getattr(model, "all_tied_weights_keys", {})
    absent = [name for name, in_file in names.items() if in_file not in shapes]
    refuse_missing(path, sorted(name for name in absent if name not in tied))
    for name, in_file in names.items():
        if name in absent:  # a tied parameter is stored under its other name
            continue
        shape, expected = shapes[in_file], tuple(parameters[name].shape)
        if sorted(shape) != sorted(expected):  # GPT-2's matrices are transposed
            error = _(
                "{name} is {shape}, and by its settings {expected}",
                name=in_file,
                shape=list(shape),
                expected=list(expected),
            )
            raise TsugikiError("{path} cannot be read: {error}", path=path, error=error)


def refuse_missing(path: Path, missing: Sequence[str]) -> None:
    """Raise a TsugikiError if parameters are missing in a file."""
    if missing:
        raise TsugikiError(
            "{path} is not a complete model: it has no {missing}", path=path, missing=summarise_list(missing)
        )


def _check_all_tensors_read(path: Path, header: GgufHeader, names: set[str]) -> None:
    """Check that the model has a parameter for every tensor in the file; transformers ignores the others silently."""
    if header.architecture not in VERIFIED:
        return
    read = set(llama_cpp_names(header.architecture, header.setting("block_count"), names).values())
    ignored = [tensor.name for tensor in header.tensors if tensor.name not in {*read, _ROPE_FACTORS}]
    if ignored:
        raise TsugikiError(
            "{path} cannot be read: transformers would ignore {ignored}",
            path=path,
            ignored=summarise_list(sorted(ignored)),
        )


BYTE_LEVEL, SENTENCEPIECE = "gpt2", "llama"
SUPPORTED_TOKENIZERS = (BYTE_LEVEL, SENTENCEPIECE)
"""Values of `tokenizer.ggml.model` that are supported: byte-level BPE and SentencePiece's BPE."""

# Values of `tokenizer.ggml.pre`, which says how byte-level BPE splits text. The names are from llama.cpp's
# src/llama-vocab.cpp.
_AS_GPT2 = ("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling", "gigachat", "mellum", "exaone4")
_SINGLE_DIGITS = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
_WHOLE_TOKENS = (
    *("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"),
    "tekken",
)
"""A piece of text that is a token as a whole is not merged from smaller tokens, and a text begins with BOS."""
_SPLIT_BY_TRANSFORMERS = (
    *("dbrx", "smaug-bpe", "qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "qwen35"),
    *("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"),
)


def build_tokenizer(path: Path, header: GgufHeader, folder: Path) -> PreTrainedTokenizerBase:
    """Build the tokenizer of a GGUF file: tokens, merges, special tokens, BOS and EOS settings, chat template.

    The folder is empty: otherwise transformers would read tokenizer files from the GGUF file's own folder.
    """
    from transformers import PreTrainedTokenizerFast

    metadata = header.metadata
    pre = str(metadata.get("tokenizer.ggml.pre", ""))
    byte_level = metadata["tokenizer.ggml.model"] == BYTE_LEVEL
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, gguf_file=str(path.resolve()))
    if byte_level:
        _set_splitting(tokenizer.backend_tokenizer, pre, path.name)
    else:
        _set_space_marks(tokenizer.backend_tokenizer, bool(metadata.get("tokenizer.ggml.add_space_prefix", True)))
    default = not byte_level or pre in _WHOLE_TOKENS
    tokenizer.add_bos_token = bool(metadata.get("tokenizer.ggml.add_bos_token", default))
    tokenizer.add_eos_token = bool(metadata.get("tokenizer.ggml.add_eos_token", False))
    return tokenizer


def _set_splitting(backend: "Tokenizer", pre: str, file: str) -> None:
    """Let byte-level BPE split text as the value of `tokenizer.ggml.pre` requires."""
    from tokenizers import pre_tokenizers

    if pre in _WHOLE_TOKENS:
        backend.model.ignore_merges = True
    elif pre in _SINGLE_DIGITS:
        digits = pre_tokenizers.Digits(individual_digits=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    elif pre not in (*_AS_GPT2, *_SPLIT_BY_TRANSFORMERS):
        message = _(
            "{file} splits text before tokenisation in a way that Tsugiki does not know ({value}); it is split "
            "as for GPT-2, and some tokens may differ from llama.cpp's",
            file=file,
            value=pre or _("unnamed"),
        )
        warn_caller(message)


def _set_space_marks(backend: "Tokenizer", prefix: bool) -> None:
    """Let SentencePiece's BPE write a space as ▁.

    With `prefix`, one more ▁ is added before the text, and before text that follows a special token.
    """
    from tokenizers import decoders, normalizers

    mark = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = None
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), mark]) if prefix else mark
    plain = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*plain, decoders.Strip(" ", 1, 0)] if prefix else plain)
