"""Several adapters on one base: switching, loading and unloading them many times."""

import gc

import pytest
import torch

from tests.tiny import logits, shake, tiny_model
from tsugiki import LoraConfig, graft, load_adapter, save_adapter, set_adapter, trainable_parameters
from tsugiki.lora import remove_adapter
from tsugiki.lowbit import Int8Linear, quantize


def two_adapters(model):
    for seed, name in enumerate("ab"):
        shake(graft(model, LoraConfig(r=2 + seed, freeze_A=name == "b"), name), seed)
    return model


def test_grafting_and_switching_dequantise_nothing(monkeypatch):
    model = quantize(tiny_model(), torch.float32)
    monkeypatch.setattr(Int8Linear, "dequantize", lambda layer: pytest.fail("dequantised"))
    two_adapters(model)
    set_adapter(model, "a")
    set_adapter(model, "b")


def test_an_activated_adapter_gets_the_models_device_and_mode():
    model = two_adapters(tiny_model("llama"))
    a, b = (model._tsugiki.adapters[name].pairs.values() for name in "ab")
    model.train()
    assert all(pair.dropout.training for pair in b)
    set_adapter(model, "a")
    assert all(pair.training and pair.dropout.training for pair in a)
    model.eval()
    set_adapter(model, "b")
    assert not any(pair.training or pair.dropout.training for pair in b)
    assert {name.rpartition(".")[2] for name in trainable_parameters(model)} == {"B"}, "A of b is frozen"
    set_adapter(model, "a")
    assert {name.rpartition(".")[2] for name in trainable_parameters(model)} == {"A", "B"}
    model.to("meta")
    set_adapter(model, "b")
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert {pair.B.device.type for pair in b} == {"meta"}


def test_layers_that_are_moved_are_switched():
    model = two_adapters(tiny_model())
    set_adapter(model, "a")
    blocks = model.transformer.h
    blocks[0], blocks[1] = blocks[1], blocks[0]
    set_adapter(model, "b")
    for path, pair in model._tsugiki.adapters["b"].pairs.items():
        assert model.get_submodule(path).lora is pair


def test_loads_and_unloads_leave_nothing_behind(tmp_path):
    # `benchmarks.serving.switching` measures the time and the memory of the process.
    save_adapter(two_adapters(tiny_model()), tmp_path, "a")
    model = graft(tiny_model(), LoraConfig(r=2), "other")

    def loaded_and_unloaded() -> torch.Tensor:
        load_adapter(model, tmp_path, "guest")
        found = logits(model)
        remove_adapter(model, "guest")
        return found

    def alive() -> tuple[int, int]:
        gc.collect()
        everything = sum(issubclass(type(thing), torch.Tensor | torch.nn.Module) for thing in gc.get_objects())
        return everything, len(list(model.modules()))

    first = loaded_and_unloaded()
    before = alive()
    for _ in range(10):
        assert torch.equal(first, loaded_and_unloaded())
    assert alive() <= before  # objects of other tests may have been freed in the meantime
