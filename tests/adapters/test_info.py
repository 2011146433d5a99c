"""Facts about an adapter, read without its values."""

from pathlib import Path

import pytest

from tests.tiny import shake, tiny_model
from tests.tiny_types import tiny_of
from tsugiki import LoraConfig, TsugikiError, graft, save_adapter, trainable_parameters
from tsugiki.adapters import read_adapter_info, read_lora_weights, scaled
from tsugiki.lora import add_adapter
from tsugiki.methods import METHODS


def test_experts_are_targets_and_only_merging_takes_them(tmp_path: Path):
    model = tiny_of("qwen3_moe")
    graft(model, LoraConfig(r=3, target_modules=["q_proj"], target_parameters=["gate_up_proj", "mlp.gate.weight"]))
    shake(model)
    save_adapter(model, tmp_path)
    info = read_adapter_info(tmp_path)
    assert (info.method, info.ranks, info.targets) == ("lora", (3,), ("gate", "q_proj", "gate_up_proj"))
    assert info.parameters == sum(p.numel() for p in trainable_parameters(model).values())
    lora = read_lora_weights(tmp_path)
    assert len(lora.layers) == 4  # a router has one matrix
    with pytest.raises(TsugikiError, match="experts.*experts.lora_A"):
        scaled(lora, 2.0)


@pytest.mark.parametrize("method", ["ia3", "prompt-tuning", "bitfit"])
def test_other_methods_have_no_ranks(method: str, tmp_path: Path):
    model = tiny_model()
    add_adapter(model, METHODS[method].configure({}).new_adapter(model), "default")
    save_adapter(model, tmp_path)
    info = read_adapter_info(tmp_path)
    assert (info.method, info.ranks) == (method, ())
    assert info.parameters > 0
