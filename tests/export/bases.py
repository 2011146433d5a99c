"""Write a model as a GGUF file in float32.

The metadata of each architecture are written here from the model's config; names and row orders are the tested ones.
"""

from pathlib import Path
from typing import Any

import gguf

from tsugiki.export import llama_cpp_architecture, row_order

F32 = 0  # ggml's number of it


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
        name = names.get_name(key, (".weight", ".bias"))
        if name is None and key.removeprefix("transformer.") != key:
            name = names.get_name(key.removeprefix("transformer."), (".weight", ".bias"))
        if name is None and key.endswith((".attn.bias", ".masked_bias", "rotary_emb.inv_freq")):
            continue
        assert name is not None, key
        layer, _, part = key.rpartition(".")
        if type(model.get_submodule(layer)).__name__ == "Conv1D" and part == "weight":
            tensor = tensor.T
        order = row_order(model, layer, len(tensor))
        if order is not None:
            tensor = tensor[order]
        if "gemma" in config.model_type and name.endswith("norm.weight"):
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
    head = getattr(config, "head_dim", None) or width // heads
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(config.vocab_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(getattr(config, "max_position_embeddings", 64))
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_file_type(F32)
    names = ("rms_norm_eps", "layer_norm_epsilon", "layer_norm_eps")
    epsilon = next(getattr(config, name) for name in names if getattr(config, name, None) is not None)
    if hasattr(config, "rms_norm_eps"):
        writer.add_layer_norm_rms_eps(epsilon)
    else:
        writer.add_layer_norm_eps(epsilon)
    if config.model_type == "falcon" and not config.new_decoder_architecture:
        writer.add_head_count_kv(1 if config.multi_query else heads)
    elif config.model_type == "falcon":
        writer.add_head_count_kv(config.num_kv_heads)
    else:
        writer.add_head_count_kv(getattr(config, "num_key_value_heads", heads))
    if config.model_type not in ("gpt2", "bloom"):
        rope = getattr(config, "rope_parameters", None) or {}
        rope = rope.get("full_attention", rope)
        share = rope.get("partial_rotary_factor", 1.0)
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
    if config.model_type == "cohere":
        writer.add_logit_scale(config.logit_scale)
    if config.model_type == "gpt_neox":
        writer.add_parallel_residual(config.use_parallel_residual)
