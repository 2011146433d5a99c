"""Models whose linear layers are all quantised to int8."""

import weakref
from importlib.resources import files
from typing import Any

import pytest
import torch
from torch import nn

from tests.errors import refused
from tests.tiny import DIFFERENT, logits, relative_error, tiny_model, train_steps
from tsugiki import LoraConfig, graft, merge
from tsugiki.base import load_model, load_tokenizer
from tsugiki.lowbit import (
    Int8Linear,
    QuantizedLayer,
    count_parameters,
    is_quantizable,
    quantize,
)
from tsugiki.lowbit import quantization as quantization_module

IN_4_BITS = [(kind, dtype) for kind in DIFFERENT[:3] for dtype in ("nf4", "nf4-int8")]


@pytest.mark.parametrize(("kind", "base_dtype"), [*((kind, "int8") for kind in DIFFERENT), *IN_4_BITS])
def test_every_linear_layer_is_replaced_and_the_model_computes_nearly_the_same(kind: str, base_dtype: Any):
    model = tiny_model(kind)
    expected, count, head = logits(model), count_parameters(model), model.get_output_embeddings()
    table = model.get_input_embeddings().weight.detach().clone()
    linear = {path for path, layer in model.named_modules() if is_quantizable(layer)}
    assert count == sum(parameter.numel() for parameter in model.parameters())
    quantize(model, torch.float32, base_dtype)
    found = {path: layer for path, layer in model.named_modules() if isinstance(layer, QuantizedLayer)}
    if base_dtype == "nf4":  # every layer but the head
        assert model.get_output_embeddings() is head
        linear = {path for path in linear if not path.endswith("lm_head")}
    assert found.keys() == linear
    in_8_bits = {path for path, layer in found.items() if isinstance(layer, Int8Linear)}
    assert in_8_bits == {"int8": linear, "nf4": set(), "nf4-int8": {"lm_head"}}[base_dtype]
    assert torch.equal(model.get_input_embeddings().weight, table), "also if the head is the same parameter"
    assert not any(parameter.requires_grad for parameter in model.parameters())
    least, most = (1e-4, 0.05) if base_dtype == "int8" else (1e-3, 0.3)
    assert least < (logits(model) - expected).norm() / expected.norm() < most
    assert count_parameters(model) == count
    graft(model, LoraConfig(r=2, target_modules="all-linear"))
    assert count_parameters(model) == count + sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_other_parameters_are_cast_and_buffers_are_not():
    model = tiny_model("llama")
    frequencies = model.model.rotary_emb.inv_freq.clone()
    quantize(model)
    codes = {id(p) for module in model.modules() if isinstance(module, Int8Linear) for p in module.codes()}
    assert {p.dtype for p in model.parameters() if id(p) not in codes} == {torch.bfloat16}
    assert model.dtype == model.config.dtype == torch.bfloat16
    assert logits(model).dtype == torch.bfloat16
    assert torch.equal(model.model.rotary_emb.inv_freq, frequencies)
    assert model.lm_head.scale.dtype == torch.float32


def test_weights_are_freed_one_by_one(monkeypatch: pytest.MonkeyPatch):
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(5)))
    weights = [weakref.ref(layer.weight) for layer in model]
    alive: list[int] = []
    make = Int8Linear.from_layer

    def counting(layer: nn.Module, dtype: torch.dtype) -> Int8Linear:
        alive.append(sum(weight() is not None for weight in weights))
        return make(layer, dtype)

    monkeypatch.setattr(Int8Linear, "from_layer", counting)
    quantize(model)
    assert alive == [5, 4, 3, 2, 1]


def test_the_embedded_model_predicts_as_well_as_before():
    model, tokenizer = load_model("embedded"), load_tokenizer("embedded")
    text = (files("tsugiki") / "assets" / "quickstart" / "01_tsugiki_no_niwa.txt").read_text(encoding="utf-8")
    tokens = torch.tensor([tokenizer(text, truncation=True, max_length=512)["input_ids"]])
    with torch.no_grad():
        expected = model(input_ids=tokens, labels=tokens).loss
        found = quantize(model)(input_ids=tokens, labels=tokens).loss
    assert abs(found - expected) < 0.01 * expected


def test_a_processor_without_exact_integers_gives_a_warning(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(quantization_module, "exact_integers", lambda: False)
    with pytest.warns(UserWarning, match="8-bit"):
        quantize(tiny_model())


@pytest.mark.parametrize("base_dtype", ["int8", "nf4"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(base_dtype: Any, value: float):
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 5] = value
    with refused(r"model\.layers\.1\.mlp\.up_proj"):
        quantize(model, torch.float32, base_dtype)


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}, {"init_lora_weights": "pissa"}, {"lora_dropout": 0.1}])
def test_an_adapter_trains_on_a_base_in_4_bits_and_is_not_merged_into_it(settings: dict[str, Any]):
    model = quantize(tiny_model("llama"), torch.float32, "nf4")
    before = logits(model)
    graft(model, LoraConfig(r=2, target_modules="all-linear", **settings))
    assert relative_error(logits(model), before) < 1e-4
    train_steps(model.train(), 3, lr=3e-2)
    model.eval()
    trained = logits(model)
    assert relative_error(trained, before) > 0.01
    with refused("quantised"):
        merge(model)
