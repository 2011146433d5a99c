"""Several adapters on one base: switched, loaded and unloaded again and again."""

import copy
import gc

import pytest
import torch

from tests.tiny import ids, logits, shake, tiny_model
from tsugiki import LoraConfig, graft, load_adapter, save_adapter, set_adapter, trainable_parameters, ungraft
from tsugiki.base.int8 import Int8Linear
from tsugiki.base.quantization import quantise
from tsugiki.lora.graft import remove_adapter
from tsugiki.lora.layer import grafted_layers


def two_adapters(model):
    for seed, name in enumerate("ab"):
        graft(model, LoraConfig(r=2 + seed, freeze_A=name == "b"), name)
        shake(model, seed)
    return model


def test_a_switch_makes_no_weight_of_a_layer_in_few_bits(monkeypatch):
    model = two_adapters(quantise(tiny_model(), torch.float32))
    made = []
    monkeypatch.setattr(Int8Linear, "weight", property(lambda layer: made.append(layer)))
    set_adapter(model, "a")
    set_adapter(model, "b")
    assert not made


def test_what_is_switched_on_follows_the_model():
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


def test_a_copy_is_switched_by_itself():
    model = two_adapters(tiny_model())
    b = logits(model)
    twin = copy.deepcopy(model)
    set_adapter(twin, "a")
    a = logits(twin)
    assert not torch.equal(a, b)
    assert torch.equal(logits(model), b)
    set_adapter(model, "a")
    assert torch.equal(logits(model), a)
    set_adapter(twin, "b")
    assert torch.equal(logits(model), a)
    assert torch.equal(logits(twin), b)


def test_a_layer_that_was_replaced_since_is_the_one_that_is_switched():
    model = two_adapters(tiny_model())
    a_block, b_block = model.transformer.h
    model.transformer.h[0], model.transformer.h[1] = b_block, a_block
    set_adapter(model, "a")
    for path, pair in model._tsugiki.adapters["a"].pairs.items():
        assert model.get_submodule(path).lora is pair


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside another"])
def test_a_hundred_loads_and_unloads_leave_nothing_behind(tmp_path, beside: bool):
    # How long they take, and what the process holds, `benchmarks.switching` measures.
    save_adapter(two_adapters(tiny_model()), tmp_path, "a")
    model = tiny_model()
    if beside:
        graft(model, LoraConfig(r=2), "other")

    def alive() -> int:
        gc.collect()
        return sum(issubclass(type(thing), torch.Tensor | torch.nn.Module) for thing in gc.get_objects())

    def cycle() -> torch.Tensor:
        load_adapter(model, tmp_path, "guest")
        found = logits(model)
        remove_adapter(model, "guest")
        return found

    first = cycle()
    before, layers = alive(), len(list(model.modules()))
    for _ in range(99):
        last = cycle()
    assert torch.equal(first, last)
    del last
    assert alive() <= before  # other tests' may have gone meanwhile
    assert len(list(model.modules())) == layers
    assert bool(grafted_layers(model)) == beside
    assert torch.equal(logits(ungraft(model) if beside else model, ids()), logits(tiny_model(), ids()))
