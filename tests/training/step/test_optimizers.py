"""LoRA+ beside PEFT's optimiser of that name, and runs of the methods that are LoRA's."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.optimizers import create_loraplus_optimizer
from safetensors.torch import load_file

from tests.tiny import ids, relative_error, shake, tiny_model
from tsugiki import LoraConfig, graft, load_adapter, save_adapter, trainable_parameters
from tsugiki.io import ADAPTER_FILE
from tsugiki.training import RunConfig, loraplus


def plus(**changes: Any) -> RunConfig:
    return RunConfig.model_validate({"model": "-", "data": "-", "out": "-", "method": "lora+", **changes})


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("decay", "more"),
    # PEFT lets DoRA's magnitudes decay too, so DoRA is without.
    [(0.0, {}), (0.1, {}), (0.1, {"bias": "lora_only"}), (0.0, {"use_dora": True})],
)
def test_a_step_is_pefts(decay: float, more: dict[str, Any], tmp_path: Path):
    fields = {"r": 4, "lora_alpha": 12, "target_modules": ["c_attn", "c_proj"], **more}
    theirs = shake(peft.get_peft_model(tiny_model(), peft.LoraConfig(task_type="CAUSAL_LM", **fields)).eval())
    theirs.save_pretrained(tmp_path / "start")
    ours = tiny_model()
    load_adapter(ours, tmp_path / "start")
    config = plus(loraplus_lr_ratio=8, weight_decay=decay, adam_beta2=0.99)
    rates: dict[str, Any] = {"lr": 2e-3, "loraplus_lr_ratio": 8, "loraplus_weight_decay": decay}
    optimizer_of_peft = create_loraplus_optimizer(theirs, torch.optim.AdamW, betas=(0.9, 0.99), **rates)
    for model, optimizer in ((theirs, optimizer_of_peft), (ours, loraplus(ours, config, 2e-3))):
        for seed in range(2):
            optimizer.zero_grad()
            model(input_ids=ids(seed=seed), labels=ids(seed=seed)).loss.backward()
            optimizer.step()
    theirs.save_pretrained(tmp_path / "theirs")
    save_adapter(ours, tmp_path / "ours")
    mine, other = (load_file(tmp_path / who / ADAPTER_FILE) for who in ("ours", "theirs"))
    for key, tensor in mine.items():
        # A bias of the attention's keys has no gradient but rounding, of which Adam makes a step.
        parts = [slice(0, 32), slice(64, 96)] if key.endswith("c_attn.base_layer.bias") else [slice(None)]
        assert all(relative_error(tensor[part], other[key][part]) < 1e-4 for part in parts), key


def test_every_parameter_that_trains_is_in_one_group():
    model = tiny_model()
    config = LoraConfig(r=2, target_modules=["c_attn", "wte"], bias="all", modules_to_save=["ln_f"], use_dora=True)
    graft(model, config)
    optimizer = loraplus(model, plus(weight_decay=0.1), 1e-3)
    inside = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    trained = trainable_parameters(model)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(inside) == len(trained)
    for name, p in trained.items():
        quick = p.ndim == 1 or (name.endswith("lora.B") and "wte" not in name)
        assert inside[id(p)]["lr"] == pytest.approx(1.6e-2 if quick else 1e-3), name
        assert inside[id(p)]["weight_decay"] == (0 if p.ndim == 1 else 0.1), name
