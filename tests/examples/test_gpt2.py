"""A GPT-2 with LoRA: its trainable and frozen parameters, and equality with the library."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from gpt2 import ATTENTION, apply_lora_to_gpt2, count_parameters
from linear import LinearWithLoRA
from transformers import Trainer, TrainingArguments

from tests.tiny import ids, logits, shake, tiny_model
from tsugiki import LoraConfig, active_adapter, graft

WIDER = ("c_attn", "c_proj")


def wrapped(model: Any) -> dict[str, LinearWithLoRA]:
    return {name: module for name, module in model.named_modules() if isinstance(module, LinearWithLoRA)}


@pytest.mark.parametrize("targets", [WIDER, ("lm_head",)])
def test_logits_are_bit_identical_before_training_and_change_with_b(targets: tuple[str, ...]):
    model = tiny_model()
    expected = logits(model)
    assert apply_lora_to_gpt2(model, rank=4, alpha=8, targets=targets) is model
    assert torch.equal(logits(model), expected)
    assert not torch.isclose(logits(shake(model)), expected).all(), "the adapter has no effect"


SIZES = {"attn.c_attn": (32, 96), "attn.c_proj": (32, 32), "mlp.c_proj": (128, 32)}


@pytest.mark.parametrize(("targets", "layers"), [(ATTENTION, ["attn.c_attn", "attn.c_proj"]), (WIDER, SIZES)])
def test_a_and_b_train_and_nothing_else(targets: tuple[str, ...], layers: Iterable[str]):
    model = apply_lora_to_gpt2(tiny_model(), rank=4, alpha=8, targets=targets)
    expected = {}
    for block in range(2):
        for layer in layers:
            rows, columns = SIZES[layer]
            expected[f"transformer.h.{block}.{layer}.lora.A"] = (4, rows)
            expected[f"transformer.h.{block}.{layer}.lora.B"] = (columns, 4)
    assert {name: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad} == expected
    assert count_parameters(model)[0] == sum(rows * columns for rows, columns in expected.values())


def test_transformers_trainer_trains_it(tmp_path: Path):
    model = apply_lora_to_gpt2(tiny_model(), rank=4, alpha=8)
    before = {name: p.clone() for name, p in model.named_parameters()}
    rows = [{"input_ids": row, "labels": row} for row in ids(8)]
    quiet = {"save_strategy": "no", "report_to": [], "use_cpu": True, "disable_tqdm": True, "logging_steps": 1}
    arguments = TrainingArguments(str(tmp_path), max_steps=5, learning_rate=1e-2, **quiet)
    trainer = Trainer(model, arguments, train_dataset=rows)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if ".lora." in name}


def test_the_library_computes_the_same_with_the_same_a_and_b():
    ours = shake(apply_lora_to_gpt2(tiny_model(), rank=4, alpha=8, targets=WIDER))
    theirs = tiny_model()
    adapter = active_adapter(graft(theirs, LoraConfig(r=4, lora_alpha=8, target_modules=list(WIDER))))
    assert set(adapter.pairs) == set(wrapped(ours))
    for name, layer in wrapped(ours).items():
        with torch.no_grad():
            adapter.pairs[name].A.copy_(layer.lora.A)
            adapter.pairs[name].B.copy_(layer.lora.B)
    torch.testing.assert_close(logits(ours), logits(theirs))

    for model in (ours, theirs):
        model(input_ids=ids(), labels=ids()).loss.backward()
    for name, layer in wrapped(ours).items():
        torch.testing.assert_close(layer.lora.A.grad, adapter.pairs[name].A.grad)
        torch.testing.assert_close(layer.lora.B.grad, adapter.pairs[name].B.grad)


def test_nothing_to_wrap_is_an_error_and_freezes_nothing():
    model = tiny_model()
    with pytest.raises(ValueError, match="no layer's name ends in q_proj"):
        apply_lora_to_gpt2(model, rank=4, alpha=8, targets=("q_proj",))
    assert all(p.requires_grad for p in model.parameters())
