"""Settings of LoRA that do not fit the model: one line says what and where, and the model is as before."""

from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from tests.errors import refused
from tests.tiny import CONFIGS, tiny_model
from tests.tiny_types import tiny_of
from tsugiki import LoraConfig, graft
from tsugiki.lowbit import quantize

MODELS: dict[str, Callable[[], Any]] = {
    "no linear layer": lambda: nn.Sequential(nn.LayerNorm(3), nn.ReLU()),
    "conv": lambda: nn.Sequential(nn.Conv2d(4, 4, 3)),
    "conv of 2 groups": lambda: nn.Sequential(nn.Conv2d(4, 4, 3, groups=2)),
    "conv of 4 groups": lambda: nn.Sequential(nn.Conv2d(4, 4, 3, groups=4)),
    "circular conv": lambda: nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")),
    "transposed conv": lambda: nn.Sequential(nn.ConvTranspose2d(4, 4, 3)),
    "int8": lambda: quantize(tiny_model()),
}


def tokens(indices: Any, **more: Any) -> dict[str, Any]:
    return {"trainable_token_indices": indices, **more}


def experts(**more: Any) -> dict[str, Any]:
    return {"target_modules": ["q_proj"], "target_parameters": ["gate_up_proj", "down_proj"], **more}


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("gpt2", {"target_modules": ["q_proj"]}, "target_modules=q_proj .* c_attn, c_fc"),
    ("gpt2", {"target_modules": ["c_attn"], "layers_to_transform": [9]}, r"c_attn.*\[9\]"),
    ("gpt2", {"target_modules": ["c_attn"], "modules_to_save": ["head"]}, "modules_to_save.*'head'"),
    ("gpt2", {"target_modules": ["lm_head"], "bias": "lora_only"}, "bias is 'lora_only'"),
    ("int8", {"modules_to_save": ["lm_head"]}, r"lm_head\.qweight is quantised"),
    ("qwen3_moe", {"target_modules": ["gate"]}, "mlp.gate, a Qwen3MoeTopKRouter, which cannot be grafted"),
    ("mamba", {"target_modules": ["conv1d"]}, "mixer.conv1d, a Conv1d, which cannot be grafted"),
    ("llama", {"target_modules": ["all-linear", "lm_head"]}, "'all-linear' is no name in a list.*q_proj"),
    ("qwen3_moe", {"target_modules": ["gate_proj"]}, r"gate_proj matches no layer.*\(target_parameters: down_proj, g"),
    ("no linear layer", {"target_modules": "all-linear"}, "no layer that can be grafted"),
    ("conv of 4 groups", {"r": 6, "target_modules": ["0"]}, "0 .*Conv2d .*4 groups.*rank 6"),
    ("conv of 2 groups", {"use_dora": True, "target_modules": ["0"]}, "use_dora.* 0 .*Conv2d .*2 groups"),
    ("circular conv", {"target_modules": ["0"]}, "0 is a Conv2d .*circular"),
    ("conv", {"init_lora_weights": "pissa", "target_modules": ["0"]}, "'pissa' .*linear.* 0 .*Conv2d"),
    ("transposed conv", {"target_modules": ["0"]}, " 0.*ConvTranspose2d"),
    ("qwen3_moe", experts(lora_dropout=0.1), r"lora_dropout is 0.1.*0 for target_parameters.*gate_up_proj"),
    ("qwen3_moe", experts(use_dora=True), "use_dora.*target_parameters"),
    ("qwen3_moe", experts(init_lora_weights="pissa"), "'pissa'.*linear layers"),
    ("qwen3_moe", {"target_parameters": ["no_such"]}, "no_such.*down_proj, gate_up_proj"),
    ("qwen3_moe", {"target_parameters": ["input_layernorm.weight"]}, "input_layernorm.weight, which has 1 axis"),
    ("qwen3_moe", experts(target_parameters=["q_proj.weight"]), r"both select the weight of model.*q_proj \(2"),
    ("glm4_moe", {"use_dora": True}, "use_dora.*gate_proj"),  # PEFT takes the names of such layers for experts
    ("gpt2", tokens([96]), "resize_token_embeddings.97."),
    ("gpt2", tokens({"foo": [1]}), "names 'foo'"),
    ("gpt2", tokens({"c_attn": [1]}), "has a bias"),
    ("gpt2", tokens([1], target_modules=["wte"]), "wte, which is in target_modules or modules_to_save"),
    ("gpt2", {"target_modules": ["wte"], "ensure_weight_tying": True}, "ensure_weight_tying"),
]


@pytest.mark.parametrize(("kind", "settings", "message"), REFUSED)
def test_a_refused_graft_leaves_the_model_unchanged(kind: str, settings: dict[str, Any], message: str):
    model = MODELS[kind]() if kind in MODELS else tiny_model(kind) if kind in CONFIGS else tiny_of(kind)
    modules, trained = dict(model.named_modules()), {name: p.requires_grad for name, p in model.named_parameters()}
    with refused(message):
        graft(model, LoraConfig(**settings))
    assert dict(model.named_modules()) == modules
    assert {name: p.requires_grad for name, p in model.named_parameters()} == trained
