"""Tiny random models of every causal and encoder-decoder type of transformers, by a general rule for their configs."""

import inspect
import re
from typing import Any

import torch
import transformers
from transformers.models.auto import modeling_auto

TASKS: dict[str, tuple[Any, Any]] = {
    "causal": (transformers.AutoModelForCausalLM, modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
    "seq2seq": (transformers.AutoModelForSeq2SeqLM, modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES),
    "speech": (transformers.AutoModelForSpeechSeq2Seq, modeling_auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES),
}
"""Each task: the class that builds its models, and its model types."""
VOCABULARY = 96

# The first pattern that matches the whole name of a setting gives its value in the tiny model.
_SIZES: list[tuple[str, int]] = [
    (r".*vocab.*size.*|unpadded_vocab_size|encoder_hash_byte_group_vocab", VOCABULARY),
    (r".*(lora_rank|dt_rank|time_step_rank|_rank)", 8),
    (r".*head_?dim|d_kv|d_head|kv_channels|.*head_size|dim_head|mamba_d_head", 8),
    (r".*(num_key_value_heads|num_kv_heads|num_query_groups|linear_num_key_heads)", 2),
    (r".*(heads|n_head)", 4),
    (r"rotary_dim", 4),
    (r".*sparse_step", 2),
    (r"num_sparse_(en|de)coder_layers", 1),
    (r".*(num_experts|n_routed_experts|num_local_experts|moe_num_experts)", 4),
    (r".*(num_experts_per_tok|num_experts_per_token|moe_k|moe_topk|top_k)", 2),
    (r"n_group|topk_group|num_expert_group|n_groups|mamba_n_groups|o_groups", 1),
    (r".*(state_size|d_state)", 8),
    (r".*chunk_size|.*chunk_length|.*block_size", 8),
    (r".*(intermediate|ffn|d_ff|dff|n_inner|feed_forward|dim_ff|mlp).*(size|dim|mlp|d_ff|dff|n_inner|dim_ff)", 48),
    (r"d_ff|dff|n_inner|dim_ff", 48),
    (r"index_topk.*|.*radius|.*window.*", 8),
    (r"hidden_size_per_layer_input|laurel_rank", 8),
    (
        r"d_model|n_embd|emb_dim|.*hidden_size(_global)?|.*embedding_(dim|size)|.*embed_(proj_)?dim|dim_model.*|lru_width",
        32,
    ),
    (r"d_inner", 48),
    (r"(num_hidden|num|n|encoder|decoder|num_encoder|num_decoder)_layers?|num_blocks|num_layers_per_stack", 2),
    (r".*(max_position_embeddings|n_positions|n_ctx|context_length|max_seq_len|_positions|model_max_length).*", 128),
]


def shrink(config: Any) -> dict[str, Any]:
    """The settings of a config that make its model tiny; those of parts of it are dictionaries."""
    fields = config.to_dict()
    parts = {name: part for name in fields if isinstance(part := vars(config).get(name), transformers.PretrainedConfig)}
    depth = next((n for name in ("num_hidden_layers", "num_layers") if isinstance(n := fields.get(name), int)), 0)
    by_layer = {name: v for name, v in fields.items() if isinstance(v, list) and len(v) == depth and depth > 2}
    layers = _one_of_each_kind([value for value in by_layer.values() if value != list(range(depth))])
    settings: dict[str, Any] = {name: shrink(part) for name, part in parts.items()}
    for name, value in by_layer.items():  # a list may hold the indices of all layers
        indices = value == list(range(depth))
        settings[name] = [*range(len(layers))] if indices else [_shrunk(name, value[i]) for i in layers]
    for name, value in fields.items():
        if name not in settings and type(value) is int:
            settings[name] = _shrunk(name, value)
        elif name.endswith("token_id") and isinstance(value, list):
            settings[name] = [_shrunk(name, one) for one in value]
    if by_layer:
        settings |= {name: len(layers) for name in ("num_hidden_layers", "num_layers") if name in fields}
    if "kv_lora_rank" in fields:  # latent attention has as many heads of keys as of queries
        settings["num_key_value_heads"] = settings.get("num_attention_heads")
        settings |= {"qk_head_dim": 16} if "qk_head_dim" in fields else {}
    return {name: value for name, value in settings.items() if value != fields[name]}


def _shrunk(name: str, value: Any) -> Any:
    """The value of a setting in a tiny model."""
    if re.fullmatch(r"first_k_dense_replace|num_dense_layers", name):
        return min(value, 1)
    if type(value) is not int or value <= 2:
        return value
    if re.fullmatch(r".*_(id|index)", name):
        return value % 16 if value >= VOCABULARY else value
    return min(value, next((size for pattern, size in _SIZES if re.fullmatch(pattern, name)), value))


def _one_of_each_kind(lists: list[list[Any]]) -> list[int]:
    """The indices of the first layer of each kind; at least two, in order."""
    if not lists:
        return [0, 1]
    kinds: dict[str, int] = {}
    for i, kind in enumerate(zip(*lists, strict=True)):
        kinds.setdefault(str([k for k in kind if isinstance(k, str | int)]), i)
    chosen = sorted(kinds.values())
    return chosen if len(chosen) > 1 else [0, 1]


_MAMBA = {"mamba_d_head": 16, "mamba_n_heads": 4, "mamba_chunk_size": 8}
_QWEN4 = {
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 16,
    "indexer_compress_ratio": 4,
    "ngram_vocab_size_base": 96,
    "split_ngram_parts": 2,
    "heads_per_ngram": 2,
    "make_ngram_vocab_size_divisible_by": 2,
    "output_gate_type": "sigmoid",
}
_ZAMBA = {
    "num_hidden_layers": 4,
    "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
    "num_key_value_heads": 4,
    "attention_hidden_size": 64,
}
_WIDE = {"per_layer_config": {"1": {"head_dim": 16}}}
OVERRIDES: dict[str, dict[str, Any]] = {
    "bamba": {**_MAMBA, "num_hidden_layers": 3, "attn_layer_indices": [1]},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
    "dbrx": {"attn_config": {"rope_theta": 1e4, "kv_n_heads": 2, "clip_qkv": 8.0}, "ffn_config": {"moe_top_k": 2}},
    "deepseek_v2": {"num_experts_per_tok": 2, "first_k_dense_replace": 1},
    # Heavy compression of 128 tokens would have no effect on a text of 24.
    "deepseek_v4": {"compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 8}},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "first_k_dense_replace": 1, "n_shared_experts": 1},
    "dory": {
        "num_hidden_layers": 6,
        "n_input_layers": 2,
        "n_recurrent_layers": 2,
        "n_output_layers": 2,
        "layer_types": None,
    },
    "dots3_note": {
        "text_config": {"head_dim": 16, "per_layer_config": {}},
        "vision_config": {"adapter_in_dim": 32, "adapter_out_dim": 32},
        "audio_config": {"adapter_input_size": 32, "adapter_out_dim": 32},
    },
    "dots3_note_text": {"head_dim": 16, "per_layer_config": {}},
    "encoder-decoder": {"decoder": {"is_decoder": True, "add_cross_attention": True}},
    "falcon_h1": {**_MAMBA, "mamba_d_ssm": 64},
    "flint": {"mlp_only_layers": [0]},
    "gemma3n_text": {
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "intermediate_size": [48] * 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0],
    },
    "gemma4_text": _WIDE,
    "gemma4_unified_text": _WIDE,
    "gemma4": {"text_config": _WIDE},
    "gemma4_unified": {"text_config": _WIDE},
    "granitemoehybrid": {**_MAMBA, "layers_block_type": ["mamba", "attention"]},
    "hrm_text": {"num_hidden_layers": 16},  # a cache for each of the calls of its stacks
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8, "num_experts": 4, "moe_topk": 2},
    "inkling2_loop_text": {
        "num_hidden_layers": 4,
        "layer_types": ["hybrid_sliding", "hybrid"] * 2,
        "n_layers_per_attn_res_block": 1,
        "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
        "loop_layer_index_start": 1,
        "loop_layer_index_end": 3,
    },
    "jamba": {"num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 4},
    "lfm2": {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1, "num_hidden_layers": 2},
    "mamba2": {"num_heads": 4, "head_dim": 16},
    "marian": {"decoder_vocab_size": VOCABULARY, "pad_token_id": 0, "decoder_start_token_id": 1},
    "ministral": {"head_dim": 8},
    "mllama": {"text_config": {"cross_attention_layers": [1]}},
    "nemotron": {"num_key_value_heads": 2},
    "qwen4_exp_text": _QWEN4,
    "qwen4_exp": {"text_config": _QWEN4},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {
        "is_decoder": True,
        "attn_layers": ["local", "lsh"],
        "num_buckets": 4,
        "axial_pos_embds": False,
        "axial_pos_shape": [8, 8],
        "axial_pos_embds_dim": [16, 16],
    },
    "rwkv": {"attention_hidden_size": 32, "intermediate_size": 48, "rescale_every": 0},
    "xlstm": {"hidden_size": 64, "embedding_dim": 64, "qk_dim_factor": 1.0, "ffn_round_up_to_multiple_of": 8},
    "zamba": {**_ZAMBA, "attention_head_dim": 16},
    "zamba2": {**_ZAMBA, "mamba_headdim": 16, "adapter_rank": 8},
}
"""What the general rule does not know: settings that are missing by default, and sizes that must fit each other."""


def tiny_of(model_type: str, task: str = "causal", seed: int = 0, **settings: Any) -> Any:
    """A tiny model of this type with random weights, one layer of each kind and at least two."""
    auto, _ = TASKS[task]
    config = transformers.AutoConfig.for_model(model_type)
    chosen = merged(shrink(config), OVERRIDES.get(model_type, {}))
    if task == "causal" and getattr(config, "is_decoder", True) is False:
        chosen["is_decoder"] = True  # otherwise BERT and its like attend to later tokens
    torch.manual_seed(seed)
    model = auto.from_config(transformers.AutoConfig.for_model(model_type, **merged(chosen, settings))).eval()
    if model_type == "xmod":
        model.set_default_language("en_XX")
    return model


def lively_model(model_type: str, task: str = "causal", **settings: Any) -> Any:
    """A tiny model whose weights are large enough for every part to matter, also those that are initialised to zero."""
    model = tiny_of(model_type, task, **settings)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() < 2 and not name.endswith("bias") and parameter.any():
                continue  # weights of norms, decays
            spread = float(parameter.std()) if parameter.numel() > 1 else 0.0
            if spread < 0.1 and "A_log" not in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def merged(settings: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """`settings` with these values in their place; dictionaries are merged."""
    both = dict(settings)
    for name, value in overrides.items():
        inner = both.get(name)
        both[name] = merged(inner, value) if isinstance(value, dict) and isinstance(inner, dict) else value
    return both


def inputs_for(model: Any) -> dict[str, Any]:
    """Arguments for a forward pass of a few tokens: token ids, and the input of an audio encoder, if any."""
    accepted = inspect.signature(model.forward).parameters
    config = model.config
    text = config.get_text_config(decoder=True)
    positions = getattr(text, "max_position_embeddings", None) or 24
    ids = torch.arange(min(24, positions) if positions > 0 else 24)[None] % text.vocab_size  # XLNet's is -1
    given: dict[str, Any] = {"use_cache": False, "decoder_input_ids": ids}
    name = getattr(model, "main_input_name", "input_ids")
    sounds = {"input_features": _spectrogram, "input_values": lambda config: torch.zeros(1, 8000)}
    given[name] = sounds[name](config) if name in sounds else ids
    return {name: value for name, value in given.items() if name in accepted}


def _spectrogram(config: Any) -> torch.Tensor:
    """A spectrogram, [1, frequencies, frames] as Whisper's encoder reads it, or [1, frames, frequencies]."""
    if hasattr(config, "num_mel_bins"):
        return torch.zeros(1, config.num_mel_bins, 2 * config.max_source_positions)
    encoder = getattr(config, "encoder_config", config)
    return torch.zeros(1, 96, getattr(encoder, "num_mel_bins", None) or encoder.input_feat_per_channel)
