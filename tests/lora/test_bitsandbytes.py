"""Layers that bitsandbytes has quantised: adapters train, are saved and loaded; what reads weights is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import nn

from tests.adapters import trl_runs
from tests.errors import refused
from tests.tiny import ids, logits, relative_error, save_tiny, shake, tiny_model
from tests.training.run.test_stock_trainers import losses, trainer_of
from tsugiki import (
    LoraConfig,
    disable_adapter,
    graft,
    load_adapter,
    merge,
    reference_model,
    save_adapter,
    ungraft,
    use_fast_paths,
)
from tsugiki.lora import is_grafted

bnb = pytest.importorskip("bitsandbytes")

pytestmark = pytest.mark.filterwarnings("ignore")


def quantized(bits: int) -> Any:
    """A tiny Llama whose linear layers inside the blocks are those of bitsandbytes."""
    model = tiny_model("llama", hidden_size=64, intermediate_size=128)
    for name, layer in list(model.model.named_modules()):
        if not isinstance(layer, nn.Linear):
            continue
        if bits == 8:
            other = bnb.nn.Linear8bitLt(layer.in_features, layer.out_features, False, has_fp16_weights=False)
            other.weight = bnb.nn.Int8Params(layer.weight.data.clone(), requires_grad=False, has_fp16_weights=False)
        else:
            other = bnb.nn.Linear4bit(layer.in_features, layer.out_features, False, quant_type="nf4")
            other.weight = bnb.nn.Params4bit(layer.weight.data.clone(), requires_grad=False, quant_type="nf4")
        parent, _, child = name.rpartition(".")
        setattr(model.model.get_submodule(parent), child, other.to("cpu"))
    return model.eval()


@pytest.mark.parametrize("bits", [8, 4])
def test_an_adapter_trains_is_saved_and_loaded(bits: int, tmp_path: Path):
    model = quantized(bits)
    base = logits(model)
    graft(model, LoraConfig(r=4))
    assert len(model._tsugiki.adapters["default"].pairs) == 14, "all linear layers in two blocks"
    assert torch.equal(logits(model), base)
    shake(model)(input_ids=ids(), labels=ids()).loss.backward()
    assert all(pair.A.grad.abs().max() > 0 for pair in model._tsugiki.adapters["default"].pairs.values())
    save_adapter(model, tmp_path)
    other = quantized(bits)
    load_adapter(other, tmp_path)
    assert torch.equal(logits(other), logits(model))
    theirs = peft.PeftModel.from_pretrained(quantized(bits), tmp_path).eval()
    assert relative_error(logits(theirs), logits(model)) < 1e-3
    with disable_adapter(model):
        assert torch.equal(logits(model), base)
    with refused(r"layers.0.*quantised"):
        merge(model)


@pytest.mark.parametrize(("bits", "settings"), [(8, {"use_dora": True}), (4, {"init_lora_weights": "pissa"})])
def test_what_reads_the_weights_is_refused(bits: int, settings: dict[str, Any]):
    model = quantized(bits)
    with refused("quantised by a Linear"):
        graft(model, LoraConfig(r=4, **settings))
    assert not is_grafted(model)


def gradients(model: Any) -> torch.Tensor:
    """The gradients of one batch, of all that trains."""
    model.zero_grad()
    model.train()(input_ids=ids(), labels=ids()).loss.backward()
    return torch.cat([p.grad.flatten() for name, p in sorted(model.named_parameters()) if p.grad is not None])


def evaluate(model: Any) -> Any:
    with torch.no_grad():
        model.eval()(input_ids=ids())
    return model


@pytest.mark.parametrize(
    ("prepare", "tolerance"),
    [
        (lambda model, folder: load_adapter(model, folder), 1e-6),
        (lambda model, folder: use_fast_paths(load_adapter(model, folder)), 1e-5),
        # bitsandbytes rounds the scales of blocks to bfloat16 when it repacks them
        (lambda model, folder: evaluate(load_adapter(model, folder)), 0.05),
        (lambda model, folder: load_adapter(evaluate(model), folder), 0.05),
        (lambda model, folder: load_adapter(evaluate(model).train(), folder), 0.05),
        (lambda model, folder: evaluate(reference_model(load_adapter(model, folder))), 1e-6),
    ],
)
def test_evaluations_before_training_leave_the_gradients_right(
    prepare: Callable[[Any, Path], Any], tolerance: float, tmp_path: Path
):
    save_adapter(shake(graft(quantized(4), LoraConfig(r=4))), tmp_path)
    wanted = gradients(peft.PeftModel.from_pretrained(quantized(4), tmp_path, is_trainable=True))
    model = quantized(4)
    prepare(model, tmp_path)
    assert relative_error(gradients(model), wanted) < tolerance
    assert relative_error(gradients(evaluate(model)), wanted) < tolerance
    ungraft(model)
    assert all(vars(layer).get("train") is None for layer in model.modules())


def test_evaluations_in_a_trainer_change_nothing(tmp_path: Path):
    save_adapter(shake(graft(quantized(4), LoraConfig(r=4))), tmp_path)
    runs = []
    for settings in ({}, {"eval_strategy": "steps", "eval_steps": 2}):
        trainer = trainer_of(load_adapter(quantized(4), tmp_path), tmp_path / "run", **settings)
        trainer.train()
        runs.append(losses(trainer))
    assert runs[0] == runs[1]
    assert len(set(runs[0])) == len(runs[0])


def test_preference_tuning_after_fine_tuning_is_as_with_peft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("trl")
    settings = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    save_tiny(tmp_path / "base", "llama", hidden_size=64, intermediate_size=128, head_dim=16)
    monkeypatch.setattr(
        trl_runs,
        "base_model",
        lambda folder: transformers.AutoModelForCausalLM.from_pretrained(
            folder / "base", quantization_config=settings, device_map="cpu"
        ),
    )
    save_adapter(shake(graft(trl_runs.base_model(tmp_path), LoraConfig(r=4, lora_alpha=8))), tmp_path / "sft")
    ours, theirs = trl_runs.both("DPO", "trained", tmp_path)
    assert ours == [pytest.approx(step, rel=1e-4, abs=1e-5) for step in theirs]


def test_a_weight_that_cannot_be_unpacked_is_an_error(monkeypatch: pytest.MonkeyPatch):
    model = quantized(4)
    graft(model, LoraConfig(r=4))
    monkeypatch.setattr(bnb.nn.Linear4bit, "_save_to_state_dict", nn.Linear._save_to_state_dict)
    layer = model.model.layers[0].self_attn.q_proj.base_layer
    layer.support_avx512bf16_for_cpu, layer.weight.quant_state.packing_format_for_cpu = True, True
    with refused("repack.*load the base again"):
        model.train()
