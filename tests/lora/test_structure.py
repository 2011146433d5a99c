"""The layers that a pass through a copy without weights finds, in models whose type no table lists."""

from typing import Any

import pytest
import torch
import transformers

from tests.tiny import CONFIGS, tiny_model
from tsugiki import LoraConfig, TsugikiError, active_adapter, graft, save_adapter
from tsugiki.lora import default_layers, reasons_against
from tsugiki.model import is_linear

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
_ATTENTION = {f"self_attn.{name}_proj" for name in "qkvo"}
_FEEDFORWARD = {f"mlp.{name}_proj" for name in ("gate", "up", "down")}


def build(kind: str, auto: Any = transformers.AutoModelForCausalLM, **settings: Any) -> Any:
    torch.manual_seed(0)
    return auto.from_config(transformers.AutoConfig.for_model(kind, **settings)).eval()


def endings(model: Any, components: int = 2) -> set[str]:
    """The last components of the names of the layers that are found."""
    return {".".join(name.split(".")[-components:]) for name in default_layers(model)}


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_known_architectures_are_grafted_as_before_there_was_a_rule(kind: str):
    gpt2 = {"c_attn", "c_proj", "c_fc"}
    fused = {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}
    expected = {
        "gpt2": gpt2,
        "gpt_bigcode": gpt2,
        "gpt_neo": {"q_proj", "k_proj", "v_proj", "out_proj", "c_fc", "c_proj"},
        "gptj": {"q_proj", "k_proj", "v_proj", "out_proj", "fc_in", "fc_out"},
        "gpt_neox": fused,
        "bloom": fused,
        "falcon": fused,
        "opt": {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"},
        "phi": {"q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"},
        "phi3": {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"},
    }.get(kind, {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"})
    model = tiny_model(kind)
    named = {name for name, _ in model.named_modules() if name.rpartition(".")[2] in expected}
    assert set(default_layers(model)) == named


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


def test_a_weight_that_only_training_reads_past_its_layer_is_left_out():
    model = build(
        "gemma3n_text",
        **{**_LLAMA, "intermediate_size": [48, 48], "num_hidden_layers": 2},
        head_dim=8,
        altup_num_inputs=8,  # wide enough to be grafted
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=96,
        laurel_rank=8,
        num_kv_shared_layers=0,
        activation_sparsity_pattern=[0.0, 0.0],
        layer_types=["sliding_attention", "full_attention"],
        sliding_window=8,
        pad_token_id=0,
    )
    found = {name for name in endings(model) if name.startswith("altup")}
    assert found == {"altup.prediction_coefs", "altup.modality_router"}


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


def test_neither_weights_nor_random_numbers_are_used():
    config = transformers.AutoConfig.for_model("llama", hidden_size=8192, intermediate_size=28672, num_hidden_layers=4)
    with torch.device("meta"):
        large = transformers.LlamaForCausalLM(config)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    with torch.no_grad():
        assert len(default_layers(large)) == 4 * 7
    assert torch.equal(torch.get_rng_state(), before)


def test_a_model_that_cannot_be_run_gives_the_reason():
    model = tiny_model("llama")

    class Broken(type(model)):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            raise RuntimeError("no such\nkernel")

    model.__class__ = Broken
    with pytest.raises(TsugikiError, match=r"target_modules .*llama.*Broken.*RuntimeError: no such\).*q_proj"):
        graft(model, LoraConfig())
