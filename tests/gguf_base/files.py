"""Tiny GGUF files with the weights of a tiny Transformers model, written as llama.cpp's converter writes them."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from tests.tiny import byte_tokenizer, tiny_model

MERGES = [("t", "h"), ("Ġ", "th"), ("Ġth", "e"), ("ã", "ģ")]
TOKENS = [*sorted(byte_tokenizer().get_vocab(), key=byte_tokenizer().get_vocab().__getitem__), *map("".join, MERGES)]
"""Of a small BPE: an end token, the 256 bytes, four merges."""
ARCHITECTURES = {"gemma3_text": "gemma3", "mistral": "llama"}
"""Of those that llama.cpp calls otherwise than Transformers does."""

Kind = gguf.GGMLQuantizationType


_OVERRIDES: dict[str, dict[str, Any]] = {
    # What llama.cpp takes for granted: how wide attention's window is in which layer, and what attention is scaled by.
    "gemma2": {"query_pre_attn_scalar": 8},
    "gemma3_text": {"query_pre_attn_scalar": 8, "num_hidden_layers": 6, "layer_types": None},
    "mistral": {"sliding_window": None},
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
    kind: Kind = Kind.F32,
    pre: str | None = "gpt-2",
    rope_freqs: np.ndarray | None = None,
    **metadata: Any,
) -> Path:
    """Write `model` with a small BPE; its matrices are stored as `kind`, what has one dimension as float32.

    `metadata` is added: texts, truth values and numbers by key, with `__` for the dots.
    """
    config = model.config
    name = ARCHITECTURES.get(config.model_type, config.model_type)
    writer = gguf.GGUFWriter(path, name)
    _add_settings(writer, config)
    _add_tokenizer(writer, pre)
    for key, value in metadata.items():
        add = {str: writer.add_string, bool: writer.add_bool, float: writer.add_float32, int: writer.add_uint32}
        add[type(value)](key.replace("__", "."), value)
    extra = {} if rope_freqs is None else {"rope_freqs.weight": rope_freqs}
    for tensor_name, values in (gguf_tensors(model) | extra).items():
        stored = kind if values.ndim > 1 else Kind.F32
        writer.add_tensor(tensor_name, gguf.quants.quantize(values, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def gguf_tensors(model: Any) -> dict[str, np.ndarray]:
    """The weights under llama.cpp's names and in its layout."""
    config = model.config
    architecture = ARCHITECTURES.get(config.model_type, config.model_type)
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


def _add_tokenizer(writer: gguf.GGUFWriter, pre: str | None) -> None:
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_tokenizer_model("gpt2")
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([control if number == 0 else normal for number in range(len(TOKENS))])
    writer.add_token_merges([" ".join(pair) for pair in MERGES])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_pad_token_id(0)
