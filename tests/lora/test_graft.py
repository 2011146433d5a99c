"""Grafting in place: what trains, what does not change, and that the base can always be restored."""

import functools
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.errors import refused
from tests.lifecycle import assert_lifecycle
from tests.tiny import DIFFERENT, logits, save_grafted, shake, tiny_model
from tsugiki import (
    LoraConfig,
    active_adapter,
    graft,
    load_adapter,
    merge,
    set_adapter,
    trainable_parameters,
    ungraft,
    unmerge,
)
from tsugiki.lora import remove_adapter
from tsugiki.lowbit import quantize


@pytest.mark.parametrize("kind", [*DIFFERENT, "gemma2", "gpt_neo", "falcon", "gptj"])
def test_the_life_of_an_adapter(kind: str, tmp_path: Path):
    assert_lifecycle(functools.partial(tiny_model, kind), LoraConfig(r=4, lora_dropout=0.5), tmp_path)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("kind", "head"), [("llama", "q_proj"), ("gemma3_text", "lm_head")])
def test_the_life_of_an_adapter_of_the_embedding(kind: str, head: str, tmp_path: Path):
    config = LoraConfig(r=4, target_modules=["embed_tokens", "down_proj", head])
    assert_lifecycle(functools.partial(tiny_model, kind), config, tmp_path)


def test_a_rank_above_that_of_the_matrix_gives_a_warning():
    with pytest.warns(UserWarning, match=r"rank 33 .*transformer\.h\.0\.attn\.c_attn"):
        graft(tiny_model(), LoraConfig(r=33))


def test_one_of_several_adapters_is_active():
    model = tiny_model()
    base = logits(model)
    graft(model, LoraConfig(r=2, target_modules=["c_attn"], bias="all", modules_to_save=["ln_f"]), "one")
    one = logits(shake(model))
    graft(model, LoraConfig(r=3, target_modules=["c_proj"]), "two")
    assert torch.equal(logits(model), base), "a fresh adapter is active now"
    assert {name.rsplit(".lora.")[0].rpartition(".")[2] for name in trainable_parameters(model)} == {"c_proj"}
    with refused("'three'.*'one', 'two'"):
        set_adapter(model, "three")
    with refused("'one'"):
        graft(model, LoraConfig(), "one")
    remove_adapter(shake(model), "two")
    assert torch.equal(logits(model), base)
    set_adapter(model, "one")
    assert torch.equal(logits(model), one)
    remove_adapter(model, "one")
    assert torch.equal(logits(model), base)
    assert not any("lora" in name for name, _ in model.named_modules())


def test_training_a_copy_of_a_shared_module_gives_a_warning():
    model = tiny_model()
    with pytest.warns(UserWarning, match="lm_head.*transformer.wte.weight"):
        graft(model, LoraConfig(r=2, modules_to_save=["lm_head"]))
    assert model.lm_head.weight is not model.transformer.wte.weight
    ungraft(model)
    assert model.lm_head.weight is model.transformer.wte.weight


def test_data_parallel_is_refused(monkeypatch: pytest.MonkeyPatch):
    module = sys.modules["torch.nn.parallel.replicate"]
    monkeypatch.setattr(module, "_broadcast_coalesced_reshape", lambda tensors, devices, detach=False: [tensors] * 2)
    model = tiny_model()
    nn.parallel.replicate(model, ["meta", "meta"])
    graft(model, LoraConfig())
    with refused("DataParallel.*torchrun"):
        nn.parallel.replicate(model, ["meta", "meta"])
    ungraft(model)
    assert "_replicate_for_data_parallel" not in vars(model)


def test_the_dropout_of_the_base_is_the_same_for_all_adapters():
    model = tiny_model(resid_pdrop=0.5)
    graft(model, LoraConfig(r=2), "a", base_dropout=True)
    graft(model, LoraConfig(r=2), "b")
    with refused("base_dropout is False, .* with True"):
        graft(model, LoraConfig(r=2), "c", base_dropout=False)
    assert model.transformer.h[0].mlp.dropout.p == 0.5
    ungraft(model)
    graft(model, LoraConfig(r=2))
    with refused("base_dropout is True, .* with False"):
        graft(model, LoraConfig(r=2), "b", base_dropout=True)
    assert model.transformer.h[0].mlp.dropout.p == 0


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("trains", [True, False])
def test_a_head_that_is_no_longer_tied_trains_as_it_did_before(trains: bool):
    model = tiny_model().requires_grad_(trains)
    graft(model, LoraConfig(r=2, target_modules=["lm_head"]))
    merged = ungraft(merge(shake(model)))
    assert merged.lm_head.weight is not merged.transformer.wte.weight
    assert {p.requires_grad for p in merged.parameters()} == {trains}


class Shared(nn.Module):
    """A layer in two places of one parent's, of two parents', and not shared."""

    def __init__(self, shared: str) -> None:
        super().__init__()
        self.one, self.two = (nn.ModuleDict({"up": nn.Linear(6, 6, dtype=torch.float64)}) for _ in range(2))
        if shared == "block":
            self.two = self.one
        if shared == "layer":
            self.two["up"] = self.one["up"]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two["up"](self.one["up"](x).tanh())


@pytest.mark.parametrize("shared", ["block", "layer", "nothing"])
def test_a_layer_in_two_places_has_one_pair_and_is_merged_and_quantised_once(shared: str):
    torch.manual_seed(0)
    model, x = Shared(shared), torch.randn(3, 6, dtype=torch.float64)
    base = model(x)
    first, second = model.one["up"], model.two["up"]
    adapter = active_adapter(graft(model, LoraConfig(r=2, lora_alpha=4, target_modules=["up"])))
    assert len(adapter.pairs) == (2 if shared == "nothing" else 1)
    shake(model)
    weights = [
        layer.weight + 2 * pair.B @ pair.A
        for layer, pair in zip((first, second), list(adapter.pairs.values()) * 2, strict=False)
    ]
    expected = (x @ weights[0].T + first.bias).tanh() @ weights[1].T + second.bias
    torch.testing.assert_close(model(x), expected)
    torch.testing.assert_close(merge(model)(x), expected)
    torch.testing.assert_close(ungraft(unmerge(model))(x), base, rtol=0, atol=0)
    assert not any("lora" in name for name, _ in model.named_modules(remove_duplicate=False))
    quantised = quantize(model.float(), torch.float32)(x.float())
    torch.testing.assert_close(quantised, base.float(), rtol=0.1, atol=0.1)


def test_weights_that_accelerate_offloads_are_not_grafted(tmp_path: Path):
    accelerate = pytest.importorskip("accelerate")
    save_grafted(tmp_path, tiny_model(), LoraConfig(r=2))
    model = accelerate.cpu_offload(tiny_model(), torch.device("cpu"))
    base = logits(model)
    for attempt in (lambda: graft(model, LoraConfig(r=2)), lambda: load_adapter(model, tmp_path)):
        with refused(r"transformer\.wte are not in memory.*offload"):
            attempt()
    assert torch.equal(logits(model), base)


@pytest.mark.parametrize("setting", [{"modules_to_save": ["lm_head"]}, {"trainable_token_indices": [3]}, {"r": 1}])
def test_the_vocabulary_is_not_resized_under_an_adapter_that_changes_it(setting: dict[str, Any]):
    model = graft(tiny_model(), LoraConfig(target_modules=["wte" if "r" in setting else "c_attn"], **setting))
    graft(model, LoraConfig(target_modules=["c_attn"]), "active")
    with refused("resize_token_embeddings.*transformer.wte|lm_head.*before.*graft"):
        model.resize_token_embeddings(100)
    assert len(model.resize_token_embeddings(96).weight) == 96
    ungraft(model).resize_token_embeddings(100)
    assert model.transformer.wte.weight.shape == (100, 32)
