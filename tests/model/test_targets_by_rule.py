"""The layers and modules that the rule finds; `python -m tests.models.walk` compares all types with a backward pass."""

import dataclasses
import re
from typing import Any

import pytest
import torch
import transformers

from tests.tiny import CONFIGS, tiny_model
from tests.tiny_types import tiny_of
from tsugiki import LoraConfig, active_adapter, graft, save_adapter
from tsugiki.model import default_layers, is_linear, reasons_against, sublayers_of

_LLAMA = CONFIGS["llama"]
_MOE = {**_LLAMA, "pad_token_id": 0, "num_experts_per_tok": 2}
_SSM = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "pad_token_id": 0}
_T5 = {"vocab_size": 96, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
_WHISPER = {
    "vocab_size": 96,
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_source_positions": 16,
    "max_target_positions": 64,
    "num_mel_bins": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
_OF_GPT2 = (["attn.c_attn"], ["mlp.c_proj"], ["attn"], ["mlp"])
_OF_LLAMA = (["self_attn.k_proj", "self_attn.v_proj"], ["mlp.down_proj"], ["self_attn"], ["mlp"])
_SEPARATE = ["self_attn.k_proj", "self_attn.v_proj"]
SUBLAYERS = {
    "gpt2": _OF_GPT2,
    "gpt_bigcode": _OF_GPT2,
    "gpt_neo": (["attn.attention.k_proj", "attn.attention.v_proj"], ["mlp.c_proj"], ["attn"], ["mlp"]),
    "gptj": (["attn.k_proj", "attn.v_proj"], ["mlp.fc_out"], ["attn"], ["mlp"]),
    "gpt_neox": (["attention.query_key_value"], ["mlp.dense_4h_to_h"], ["attention"], ["mlp"]),
    "falcon": (["self_attention.query_key_value"], ["mlp.dense_4h_to_h"], ["self_attention"], ["mlp"]),
    # BLOOM's modules add the residual themselves; their last layers do not.
    "bloom": (
        ["self_attention.query_key_value"],
        ["mlp.dense_4h_to_h"],
        ["self_attention.dense"],
        ["mlp.dense_4h_to_h"],
    ),
    "opt": (_SEPARATE, ["fc2"], ["self_attn"], ["fc2"]),
    "phi": (_SEPARATE, ["mlp.fc2"], ["self_attn"], ["mlp"]),
    "phi3": (["self_attn.qkv_proj"], ["mlp.down_proj"], ["self_attn"], ["mlp"]),
}
OTHERS = {
    ("bert", "causal"): (
        ["attention.self.key", "attention.self.value"],
        ["output.dense"],
        ["attention.output.dense"],
        ["output.dense"],
    ),
    ("ctrl", "causal"): (
        ["multi_head_attention.Wk", "multi_head_attention.Wv"],
        ["ffn.2"],
        ["multi_head_attention"],
        ["ffn"],
    ),
    ("mamba", "causal"): ([], [], ["mixer"], []),
    ("rwkv", "causal"): (["attention.key", "attention.value"], ["feed_forward.value"], ["attention"], ["feed_forward"]),
    ("mixtral", "causal"): (_SEPARATE, [], ["self_attn"], ["mlp"]),
    ("lfm2", "causal"): (_SEPARATE, ["feed_forward.w2"], ["conv", "self_attn"], ["feed_forward"]),
    ("deepseek_v3", "causal"): (
        ["self_attn.kv_a_proj_with_mqa", "self_attn.kv_b_proj"],
        ["mlp.down_proj", "mlp.shared_experts.down_proj"],
        ["self_attn"],
        ["mlp"],
    ),
    ("t5", "seq2seq"): (
        [f"layer.{i}.{where}Attention.{name}" for i, where in ((0, "Self"), (1, "EncDec")) for name in "kv"],
        ["layer.1.DenseReluDense.wo", "layer.2.DenseReluDense.wo"],
        ["layer.0.SelfAttention", "layer.1.EncDecAttention"],
        ["layer.1.DenseReluDense", "layer.2.DenseReluDense"],
    ),
}


_ATTENTION = {f"self_attn.{name}_proj" for name in "qkvo"}
_FEEDFORWARD = {f"mlp.{name}_proj" for name in ("gate", "up", "down")}


def build(kind: str, auto: Any = transformers.AutoModelForCausalLM, **settings: Any) -> Any:
    torch.manual_seed(0)
    return auto.from_config(transformers.AutoConfig.for_model(kind, **settings)).eval()


def endings(model: Any, components: int = 2) -> set[str]:
    """The last components of the names of the layers that are found."""
    return {".".join(name.split(".")[-components:]) for name in default_layers(model)}


LAYERS = {
    "gpt2": {"c_attn", "c_proj", "c_fc"},
    "gpt_bigcode": {"c_attn", "c_proj", "c_fc"},
    "gpt_neo": {"q_proj", "k_proj", "v_proj", "out_proj", "c_fc", "c_proj"},
    "gptj": {"q_proj", "k_proj", "v_proj", "out_proj", "fc_in", "fc_out"},
    "gpt_neox": {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"},
    "bloom": {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"},
    "falcon": {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"},
    "opt": {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"},
    "phi": {"q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"},
    "phi3": {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"},
}


def sublayers_inside_blocks(model: Any) -> tuple[list[str], ...]:
    """The sublayers by their names inside the blocks, each once, sorted."""
    found = dataclasses.astuple(sublayers_of(model))
    return tuple(sorted({re.sub(r"^.*?\.\d+\.", "", name) for name in names}) for names in found)


@pytest.mark.parametrize("kind", CONFIGS)
def test_known_model_types(kind: str):
    model = tiny_model(kind)
    expected = LAYERS.get(kind, {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"})
    named = {name for name, _ in model.named_modules() if name.rpartition(".")[2] in expected}
    assert set(default_layers(model)) == named
    assert sublayers_inside_blocks(model) == SUBLAYERS.get(kind, _OF_LLAMA)
    graft(model, LoraConfig(r=2))
    assert set(default_layers(model)) == named


@pytest.mark.parametrize(("kind", "task"), OTHERS)
def test_sublayers_of_other_model_types(kind: str, task: str):
    assert sublayers_inside_blocks(tiny_of(kind, task)) == OTHERS[kind, task]


@pytest.mark.parametrize(
    ("kind", "ending", "reason"),
    [
        ("bart", "encoder_attn.k_proj", "no effect"),
        ("mllama", "1.mlp.up_proj", "no effect"),
        ("deepseek_v32", "indexer.wk", "no effect"),
        ("qwen2_moe", "shared_expert_gate", "fewer than 8"),
        ("afmoe", "router.gate", "router"),
        ("bamba", "mamba.out_proj", "fused kernel"),
    ],
)
def test_a_layer_that_is_left_out_has_a_reason(kind: str, ending: str, reason: str):
    reasons = {why for name, why in reasons_against(tiny_of(kind)).items() if name.endswith(ending)}
    assert len(reasons) == 1
    assert reason in reasons.pop()


def test_routers_that_are_linear_by_their_class_alone_are_left_out():
    phimoe = build("phimoe", **_MOE, num_local_experts=8)
    llama4 = build("llama4_text", **_MOE, num_local_experts=8, intermediate_size_mlp=48, head_dim=8)
    for model in (phimoe, llama4):
        routers = [layer for layer in model.modules() if type(layer).__name__.endswith("Router")]
        assert routers
        assert all(isinstance(router, torch.nn.Linear) and not is_linear(router) for router in routers)
        assert not {name for name in default_layers(model) if "router" in name}
        adapter = active_adapter(graft(model, LoraConfig(r=2, target_modules="all-linear")))
        assert not {name for name in adapter.pairs if "router" in name}
        model(input_ids=torch.arange(12)[None]).logits.sum().backward()


def test_a_layer_as_wide_as_there_are_experts_is_no_router():
    model = build(
        "qwen3_next",
        **_MOE,
        head_dim=8,
        num_experts=8,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=8,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        layer_types=["linear_attention", "full_attention"],
    )
    assert endings(model) == _ATTENTION | {
        "linear_attn.in_proj_qkvz",
        "linear_attn.in_proj_ba",
        "linear_attn.out_proj",
        *(f"shared_expert.{name}_proj" for name in ("gate", "up", "down")),
    }


def test_a_plain_linear_layer_that_chooses_experts_is_left_out():
    model = build("jetmoe", **_MOE, num_local_experts=8, kv_channels=8)
    reasons = reasons_against(model)
    routers = [name for name in reasons if name.endswith("router.layer")]
    assert len(routers) == 4
    assert {reasons[name] for name in routers} == {"router"}
    assert endings(model) == {"self_attention.kv_proj"}


@pytest.mark.parametrize("kind", ["mamba", "mamba2"])
def test_of_a_state_space_mixer_only_the_first_layer_is_found(kind: str):
    sizes = {"num_heads": 4, "head_dim": 16, "n_groups": 1, "chunk_size": 8} if kind == "mamba2" else {}
    model = build(kind, **_SSM, **sizes)
    assert endings(model) == {"mixer.in_proj"}
    graft(model, LoraConfig(r=2))
    model(input_ids=torch.arange(12)[None]).logits.sum().backward()


def test_layers_of_an_image_encoder_are_left_out_and_the_adapter_can_be_saved(tmp_path: Any):
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    model = build(
        "gemma3",
        transformers.AutoModelForImageTextToText,
        text_config={**_LLAMA, "head_dim": 8, "sliding_window": 8},
        vision_config={**vision, "image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
        image_token_index=5,
        boi_token_index=6,
        eoi_token_index=7,
    )
    assert endings(model) == _ATTENTION | _FEEDFORWARD
    assert all("language_model" in name for name in default_layers(model))
    graft(model, LoraConfig(r=2))
    save_adapter(model, tmp_path)


def test_both_sides_of_an_encoder_decoder_are_found():
    model = build("t5", transformers.AutoModelForSeq2SeqLM, **_T5)
    attentions = {f"{where}.{name}" for where in ("SelfAttention", "EncDecAttention") for name in "qkvo"}
    assert endings(model) == attentions | {"DenseReluDense.wi", "DenseReluDense.wo"}
    whisper = build("whisper", transformers.AutoModelForSpeechSeq2Seq, **_WHISPER)
    layers = {f"{where}.{name}_proj" for where in ("self_attn", "encoder_attn") for name in ("q", "k", "v", "out")}
    assert endings(whisper) == layers | {"0.fc1", "0.fc2"}
    assert "proj_out" not in default_layers(whisper)


def test_no_weights_are_read():
    config = transformers.AutoConfig.for_model("llama", hidden_size=8192, intermediate_size=28672, num_hidden_layers=4)
    with torch.device("meta"):
        large = transformers.LlamaForCausalLM(config)
    assert len(default_layers(large)) == 4 * 7
