"""Write a model as a GGUF file in float32.

The metadata of each architecture are written here from the model's config; names and row orders are the tested ones.
"""

from pathlib import Path
from typing import Any

import gguf
import numpy as np

from tsugiki.export.llama_cpp_layers import in_llama_cpp_order, llama_cpp_architecture

F32 = 0  # ggml's number of it
_NORMS_FROM_ONE = ("gemma", "gemma2", "gemma3_text", "qwen3_5_text")
"""Types whose norms multiply by 1 + weight in transformers; a GGUF file has this sum."""
_ORDERED_AS = {"A_log": "in_proj_b", "dt_bias": "in_proj_b", "conv1d.weight": "in_proj_qkv"}
"""Parameters of Qwen 3.5's linear attention that have the order of a layer's rows."""


def write_base(model: Any, path: Path) -> Path:
    """Write the whole model, without a tokenizer."""
    config = model.config
    architecture = llama_cpp_architecture(model)
    writer = gguf.GGUFWriter(path, architecture)
    _write_metadata(writer, config)
    kind = next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    state = model.state_dict()
    if config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    for key, tensor in state.items():
        known_as = key.replace("dt_bias", "dt_proj.bias").replace("layer_scalar", "layer_scalar.weight")
        name = names.get_name(known_as, (".weight", ".bias"))
        if name is None and key.removeprefix("transformer.") != key:
            name = names.get_name(key.removeprefix("transformer."), (".weight", ".bias"))
        if name is None and key.endswith((".attn.bias", ".masked_bias", "rotary_emb.inv_freq")):
            continue
        assert name is not None, key
        layer, _, part = key.rpartition(".")
        if type(model.get_submodule(layer)).__name__ == "Conv1D" and part == "weight":
            tensor = tensor.T
        rows, columns = in_llama_cpp_order(model, _ORDERED_AS.get(key.split("linear_attn.")[-1], layer), tensor, tensor)
        tensor = columns if layer.endswith("out_proj") else rows
        if part == "A_log":
            tensor = -tensor.exp()
        if tensor.dim() == 3:  # a convolution of each channel
            tensor = tensor.squeeze(1)
        if config.model_type in _NORMS_FROM_ONE and name.endswith("norm.weight") and "linear_attn" not in key:
            tensor = tensor + 1
        writer.add_tensor(name, tensor.float().contiguous().numpy())
    finish(writer)
    return path


def finish(writer: gguf.GGUFWriter) -> None:
    """Write what a writer was given."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_metadata(writer: gguf.GGUFWriter, config: Any) -> None:
    heads = config.num_attention_heads
    width = config.hidden_size
    inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * width
    last = config.per_layer_config[-1] if config.model_type == "gemma4_text" else config  # with full attention
    head = getattr(last, "head_dim", None) or width // heads
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(config.vocab_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(getattr(config, "max_position_embeddings", 64))
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_file_type(F32)
    names = ("rms_norm_eps", "norm_eps", "layer_norm_epsilon", "layer_norm_eps")
    epsilon = next(getattr(config, name) for name in names if getattr(config, name, None) is not None)
    if hasattr(config, "rms_norm_eps") or config.model_type == "lfm2":
        writer.add_layer_norm_rms_eps(epsilon)
    else:
        writer.add_layer_norm_eps(epsilon)
    if config.model_type == "falcon" and not config.new_decoder_architecture:
        writer.add_head_count_kv(1 if config.multi_query else heads)
    elif config.model_type == "falcon":
        writer.add_head_count_kv(config.num_kv_heads)
    elif config.model_type == "lfm2":
        writer.add_head_count_kv([config.num_key_value_heads * (kind != "conv") for kind in config.layer_types])
        writer.add_shortconv_l_cache(config.conv_L_cache)
    else:
        writer.add_head_count_kv(getattr(config, "num_key_value_heads", heads))
    if config.model_type not in ("gpt2", "bloom"):
        rope = getattr(config, "rope_parameters", None) or {}
        rope = rope.get("full_attention", rope)
        share = 1.0 if config.model_type == "gemma4_text" else rope.get("partial_rotary_factor", 1.0)
        writer.add_rope_dimension_count(int(head * share))
        writer.add_rope_freq_base(rope["rope_theta"])
    if head != width // heads or "gemma" in config.model_type:
        writer.add_key_length(head)
        writer.add_value_length(head)
    if config.model_type in ("gemma2", "gemma3_text"):
        writer.add_sliding_window(config.sliding_window)
    if config.model_type == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if config.model_type == "granite":
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_logit_scale(config.logits_scaling)
    if config.model_type == "qwen3_5_text":
        writer.add_ssm_conv_kernel(config.linear_conv_kernel_dim)
        writer.add_ssm_state_size(config.linear_key_head_dim)
        writer.add_ssm_group_count(config.linear_num_key_heads)
        writer.add_ssm_time_step_rank(config.linear_num_value_heads)
        writer.add_ssm_inner_size(config.linear_value_head_dim * config.linear_num_value_heads)
        writer.add_full_attention_interval(2)
        writer.add_rope_dimension_sections([1, 1, 0, 0])
    if config.model_type == "gemma4_text":
        _write_gemma4(writer, config)
    if config.model_type == "cohere":
        writer.add_logit_scale(config.logit_scale)
    if config.model_type == "gpt_neox":
        writer.add_parallel_residual(config.use_parallel_residual)


def _write_gemma4(writer: gguf.GGUFWriter, config: Any) -> None:
    narrow, wide = (config.per_layer_config[layer].head_dim for layer in (0, -1))
    rope = config.rope_parameters
    writer.add_key_length_swa(narrow)
    writer.add_value_length_swa(narrow)
    writer.add_rope_dimension_count_swa(narrow)
    writer.add_rope_freq_base_swa(rope["sliding_attention"]["rope_theta"])
    writer.add_sliding_window(config.sliding_window)
    writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in config.layer_types])
    writer.add_shared_kv_layers(config.num_kv_shared_layers)
    writer.add_embedding_length_per_layer_input(config.hidden_size_per_layer_input)
    writer.add_final_logit_softcapping(config.final_logit_softcapping)
    rotated = int(rope["full_attention"]["partial_rotary_factor"] * wide) // 2
    writer.add_tensor("rope_freqs.weight", np.repeat(np.float32([1, 1e30]), [rotated, wide // 2 - rotated]))
