"""Tiny GGUF files with the weights of a tiny transformers model, in the form that llama.cpp's converter writes."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from tests.tiny import byte_tokenizer, tiny_model

MERGES = [("t", "h"), ("Ġ", "th"), ("Ġth", "e"), ("ã", "ģ"), ("Ġ", "Ġ"), ("1", "2"), ("12", "3"), ("Ġ", "1")]
_BYTES = byte_tokenizer().get_vocab()
TOKENS = [*sorted(_BYTES, key=_BYTES.__getitem__), *map("".join, MERGES), "Ġcat"]
"""The vocabulary of a small BPE: an end token, the 256 bytes, some merges, and a word that no merge produces."""
ARCHITECTURES = {"gemma3_text": "gemma3"}
"""transformers' model type -> llama.cpp's name, where they differ."""

Kind = gguf.GGMLQuantizationType


_OVERRIDES: dict[str, dict[str, Any]] = {
    # llama.cpp assumes these values: which layers have a sliding window, and the scale of attention scores.
    "gemma2": {"query_pre_attn_scalar": 8},
    "gemma3_text": {"query_pre_attn_scalar": 8, "num_hidden_layers": 6, "layer_types": None},
}


def tiny_base(kind: str, **overrides: Any) -> Any:
    """A tiny model that a GGUF file can say all of, its attention far from uniform."""
    model = tiny_model(kind, **{"vocab_size": len(TOKENS), **_OVERRIDES.get(kind, {}), **overrides})
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2 and kind != "gpt2":
                parameter.mul_(8)
    return model


def write_gguf(
    path: Path,
    model: Any,
    kind: Kind | Callable[[str], Kind] = Kind.F32,
    settings: Mapping[str, Any] | None = None,
    extra: Mapping[str, np.ndarray] | None = None,
) -> Path:
    """Write `model` with a small BPE.

    Args:
        path: where.
        model: a tiny model of Transformers.
        kind: how its matrices are stored, or a function of a tensor's name; what has one dimension is float32.
        settings: metadata to add, to replace, or (None) to leave out.
        extra: tensors that the model does not have.
    """
    writer = gguf.GGUFWriter(path, _architecture(model.config))
    _add_settings(writer, model.config)
    _add_bpe(writer)
    _set(writer, settings or {})
    for name, values in gguf_tensors(model).items():
        stored = (kind if isinstance(kind, Kind) else kind(name)) if values.ndim > 1 else Kind.F32
        writer.add_tensor(name, gguf.quants.quantize(values, stored), raw_dtype=stored)
    for name, values in (extra or {}).items():
        writer.add_tensor(name, values)
    return _finish(writer, path)


def write_vocabulary(path: Path, settings: Mapping[str, Any] | None = None) -> Path:
    """Write a file of a SentencePiece vocabulary, with no tensor but a table of zeros."""
    pieces = [
        *("▁", "e", "t", "h", "a", "c", "▁t", "he", "▁the", "▁c", "at", "▁cat", "▁▁", "▁▁▁▁", "猫", "。", "s", "S"),
        *("1", "2", "▁1", ".", "'", "<", ">", "|", "▁s", "/", "\n"),
    ]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    scores = [0.0] * 259 + [-float(i) if len(piece) > 1 else -1000.0 - i for i, piece in enumerate(pieces)]
    kinds = gguf.TokenType
    types = [kinds.UNKNOWN, *[kinds.CONTROL] * 2, *[kinds.BYTE] * 256, *[kinds.NORMAL] * len(pieces)]
    model = tiny_base("llama", vocab_size=len(tokens), tie_word_embeddings=True)
    writer = gguf.GGUFWriter(path, "llama")
    _add_settings(writer, model.config)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    _set(writer, settings or {})
    for name, values in gguf_tensors(model).items():
        writer.add_tensor(name, values)
    return _finish(writer, path)


def _set(writer: gguf.GGUFWriter, settings: Mapping[str, Any]) -> None:
    add = {str: writer.add_string, bool: writer.add_bool, float: writer.add_float32, list: writer.add_array}
    for key, value in settings.items():
        writer.kv_data[0].pop(key, None)
        if value is not None:
            add.get(type(value), writer.add_uint32)(key, value)


def _finish(writer: gguf.GGUFWriter, path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _architecture(config: Any) -> str:
    return str(ARCHITECTURES.get(config.model_type, config.model_type))


def gguf_tensors(model: Any) -> dict[str, np.ndarray]:
    """The weights under llama.cpp's names and in its layout."""
    config = model.config
    architecture = _architecture(config)
    number = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(number, config.num_hidden_layers)
    tied = config.tie_word_embeddings
    tensors = {}
    for name, tensor in model.state_dict().items():
        if tied and name.startswith("lm_head."):
            continue
        base, _, suffix = name.rpartition(".")
        theirs = names.get_name(base)
        assert theirs is not None, name
        tensors[f"{theirs}.{suffix}"] = _laid_out(architecture, config, theirs, tensor.detach().float()).numpy()
    return tensors


def _laid_out(architecture: str, config: Any, name: str, tensor: torch.Tensor) -> torch.Tensor:
    if architecture == "llama" and name.endswith(("attn_q", "attn_k")):  # halves of each head become neighbours
        heads = config.num_attention_heads if name.endswith("attn_q") else config.num_key_value_heads
        return tensor.reshape(heads, 2, -1, *tensor.shape[1:]).swapaxes(1, 2).reshape(tensor.shape).contiguous()
    if architecture == "gpt2" and tensor.dim() == 2 and name not in ("token_embd", "position_embd", "output"):
        return tensor.T.contiguous()  # Conv1D's weight is [in, out]
    if architecture in ("gemma2", "gemma3") and name.endswith("norm"):
        return tensor + 1
    return tensor


def _add_settings(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    if config.model_type == "gpt2":
        writer.add_feed_forward_length(4 * config.hidden_size)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        return
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count_kv(config.num_key_value_heads)
    eps = getattr(config, "rms_norm_eps", None) or getattr(config, "norm_epsilon", None)
    (writer.add_layer_norm_rms_eps if hasattr(config, "rms_norm_eps") else writer.add_layer_norm_eps)(eps)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    rope = config.rope_parameters
    writer.add_rope_freq_base(float(rope.get("full_attention", rope)["rope_theta"]))
    if config.model_type.startswith("gemma"):
        writer.add_sliding_window(config.sliding_window)
    if config.model_type == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)


def _add_bpe(writer: gguf.GGUFWriter) -> None:
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([control, *[normal] * (len(TOKENS) - 1)])
    writer.add_token_merges([" ".join(pair) for pair in MERGES])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_pad_token_id(0)
