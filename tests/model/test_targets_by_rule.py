"""The layers and modules that the rule finds; `python -m tests.models.walk` compares all types with a backward pass."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tests.tiny_types import merged, shrink, tiny_of
from tsugiki import LoraConfig, active_adapter, graft, save_adapter
from tsugiki.model import default_layers, is_linear, reasons_against, sublayers_of

_SEPARATE = ["self_attn.k_proj", "self_attn.v_proj"]
_ATTENTION = {f"self_attn.{name}_proj" for name in "qkvo"}
_FEEDFORWARD = {f"mlp.{name}_proj" for name in ("gate", "up", "down")}
_BLOCKS_OF_TWO = {f"{block}.fc{number}" for block in (0, 1) for number in (1, 2)}
SUBLAYERS: dict[tuple[str, str], tuple[list[str], list[str], list[str], list[str]]] = {
    # BLOOM's modules add the residual themselves; their last layers do not.
    ("bloom", "causal"): (
        ["self_attention.query_key_value"],
        ["mlp.dense_4h_to_h"],
        ["self_attention.dense"],
        ["mlp.dense_4h_to_h"],
    ),
    ("mamba", "causal"): ([], [], ["mixer"], []),
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


@pytest.mark.parametrize(("kind", "task"), SUBLAYERS)
def test_the_sublayers_of_blocks(kind: str, task: str):
    found = dataclasses.astuple(sublayers_of(tiny_of(kind, task)))
    inside = tuple(sorted({re.sub(r"^.*?\.\d+\.", "", name) for name in names}) for names in found)
    assert inside == SUBLAYERS[kind, task]


def endings(model: Any) -> set[str]:
    """The last two components of the names of the layers that are found."""
    return {".".join(name.split(".")[-2:]) for name in default_layers(model)}


LAYERS: dict[tuple[str, str], set[str]] = {
    ("opt", "causal"): {f"self_attn.{name}_proj" for name in ("q", "k", "v", "out")} | _BLOCKS_OF_TWO,
    ("llama", "causal"): _ATTENTION | _FEEDFORWARD,
    # A layer as wide as there are experts, in_proj_ba, is no router.
    ("qwen3_next", "causal"): _ATTENTION
    | {f"linear_attn.{name}" for name in ("in_proj_qkvz", "in_proj_ba", "out_proj")}
    | {f"shared_expert.{name}_proj" for name in ("gate", "up", "down")},
    ("jetmoe", "causal"): {"self_attention.kv_proj"},
    ("t5", "seq2seq"): {f"{where}Attention.{name}" for where in ("Self", "EncDec") for name in "qkvo"}
    | {"DenseReluDense.wi", "DenseReluDense.wo"},
    ("whisper", "speech"): {f"{of}_attn.{name}_proj" for of in ("self", "encoder") for name in ("q", "k", "v", "out")}
    | _BLOCKS_OF_TWO,
}
EXPERTS = {"qwen3_next": {"num_experts": 8}, "jetmoe": {"num_local_experts": 8}}


@pytest.mark.parametrize(("kind", "task"), LAYERS)
def test_the_layers_that_are_found_also_in_a_grafted_model(kind: str, task: str):
    model = tiny_of(kind, task, **EXPERTS.get(kind, {}))
    found = default_layers(model)
    assert endings(model) == LAYERS[kind, task]
    graft(model, LoraConfig(r=2))
    assert default_layers(model) == found


@pytest.mark.parametrize(
    ("kind", "ending", "reason"),
    [
        ("bart", "encoder_attn.k_proj", "no effect"),
        ("deepseek_v32", "indexer.wk", "no effect"),
        ("qwen2_moe", "shared_expert_gate", "fewer than 8"),
        ("jetmoe", "router.layer", "router"),
        ("bamba", "mamba.out_proj", "fused kernel"),
    ],
)
def test_a_layer_that_is_left_out_has_a_reason(kind: str, ending: str, reason: str):
    model = tiny_of(kind, **EXPERTS.get(kind, {}))
    reasons = {why for name, why in reasons_against(model).items() if name.endswith(ending)}
    assert len(reasons) == 1
    assert reason in reasons.pop()


@pytest.mark.parametrize("kind", ["phimoe", "llama4_text"])
def test_routers_that_are_linear_by_their_class_alone_are_left_out(kind: str):
    model = tiny_of(kind, num_local_experts=8)
    routers = [layer for layer in model.modules() if type(layer).__name__.endswith("Router")]
    assert routers
    assert all(isinstance(router, torch.nn.Linear) and not is_linear(router) for router in routers)
    adapter = active_adapter(graft(model, LoraConfig(r=2, target_modules="all-linear")))
    assert not {name for name in [*adapter.pairs, *default_layers(model)] if "router" in name}
    model(input_ids=torch.arange(12)[None]).logits.sum().backward()


def vision_language() -> Any:
    config = transformers.AutoConfig.for_model("gemma3")
    sizes = {"image_token_id": 5, "image_token_index": 5, "pad_token_id": 0}
    settings = merged(shrink(config), {name: value for name, value in sizes.items() if hasattr(config, name)})
    torch.manual_seed(0)
    return transformers.AutoModelForImageTextToText.from_config(transformers.AutoConfig.for_model("gemma3", **settings))


def test_layers_of_an_image_encoder_are_left_out_and_the_adapter_can_be_saved(tmp_path: Path):
    model = vision_language()
    assert endings(model) == _ATTENTION | _FEEDFORWARD
    assert all("language_model" in name for name in default_layers(model))
    save_adapter(graft(model, LoraConfig(r=2)), tmp_path)
