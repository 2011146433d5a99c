"""Merging in memory."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from tests.tiny import ids, logits, shake, tiny_model
from tsugiki import (
    LoraConfig,
    TsugikiError,
    disable_adapter,
    graft,
    merge,
    trainable_parameters,
    ungraft,
    unmerge,
)
from tsugiki.lowbit import quantize

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def grafted(dtype: torch.dtype = torch.float32) -> Any:
    model = tiny_model().to(dtype)
    graft(model, LoraConfig(r=4, lora_alpha=12, target_modules=["c_attn", "mlp.c_proj", "wte"]))
    return shake(model)


class Quantized(nn.Linear):
    """A layer as quantisation libraries have them: codes called `weight`, and scales beside them."""

    def __init__(self, dtype: torch.dtype, as_buffer: bool) -> None:
        super().__init__(6, 6, bias=False)
        codes = (torch.randn(6, 6) * 20).to(dtype)
        del self.weight
        if as_buffer:
            self.register_buffer("weight", codes)
        else:
            self.weight = nn.Parameter(codes, requires_grad=False)
        self.register_buffer("scale", torch.rand(6, 1) / 40)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ (self.weight.float() * self.scale).T


@pytest.mark.parametrize("as_buffer", [False, True])
@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn, torch.float8_e5m2])
def test_codes_are_not_merged_into(dtype: torch.dtype, as_buffer: bool):
    torch.manual_seed(0)
    model, x = nn.Sequential(Quantized(dtype, as_buffer)), torch.randn(2, 6)
    base = model(x)
    graft(model, LoraConfig(r=2, lora_alpha=4, target_modules=["0"]))
    pair = shake(model)[0].lora
    expected = base + x @ (2 * pair.B @ pair.A).T
    torch.testing.assert_close(model(x), expected)
    with pytest.raises(TsugikiError, match=r"0\.weight is quantised"):
        merge(model)
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unmerge_is_bit_identical(dtype: torch.dtype):
    model = grafted(dtype)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    names, adapted = set(trainable_parameters(model)), logits(model)
    merge(model)
    assert not torch.equal(logits(model), adapted)
    unmerge(model)
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(logits(model), adapted)
    assert set(trainable_parameters(model)) == names
    model(input_ids=ids(), labels=ids()).loss.backward()
    assert all(parameter.grad is not None for parameter in trainable_parameters(model).values())


def test_a_refused_merge_leaves_the_adapter_active():
    model = tiny_model()
    graft(model, LoraConfig(r=4, target_modules=["c_attn"], modules_to_save=["ln_f"]))
    adapted, names = logits(shake(model)), set(trainable_parameters(model))
    last = model.transformer.ln_f.weight
    kept, last.data = last.data, torch.full_like(last, torch.inf)
    with pytest.raises(TsugikiError, match="ln_f"):
        merge(model)
    last.data = kept
    assert set(trainable_parameters(model)) == names
    assert torch.equal(logits(model), adapted)


def test_buffers_and_shared_weights_of_saved_modules_are_merged():
    class Saved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.norm = nn.Linear(3, 3, bias=False), nn.BatchNorm1d(3)
            self.two = nn.Linear(3, 3, bias=False)
            self.two.weight = self.one.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.two(self.norm(self.one(x)))

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), Saved())
    graft(model, LoraConfig(r=2, target_modules=["0"], modules_to_save=["1"]))
    x = torch.randn(8, 3)
    shake(model.train())(x)  # updates the running statistics of the copy
    adapted = model.eval()(x)
    merged = ungraft(merge(model))
    torch.testing.assert_close(merged(x), adapted)
    assert merged[1].one.weight is merged[1].two.weight
    assert merged[1].norm.num_batches_tracked == 1


def test_a_layer_quantised_by_another_library_is_refused():
    model = nn.Sequential(nn.Linear(4, 4))
    graft(model, LoraConfig(r=2, target_modules=["0"]))
    model[0].base_layer.weight = nn.Parameter(torch.zeros(8, 1, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(TsugikiError, match="0.weight"):
        merge(model)
    assert set(trainable_parameters(model)) == {"0.lora.A", "0.lora.B"}


def test_merging_into_a_shared_weight_unties_it_with_a_warning(tmp_path: Path):
    for targets in (["lm_head"], ["wte"]):
        model = tiny_model()
        config = model.config
        graft(model, LoraConfig(r=4, target_modules=targets))
        adapted = logits(shake(model))
        with pytest.warns(UserWarning, match="two weights"):
            merge(model)
        assert config.tie_word_embeddings  # of other models, too
        torch.testing.assert_close(logits(model), adapted, rtol=1e-4, atol=1e-4)
        unmerge(model)
        assert model.config.tie_word_embeddings
        assert model.lm_head.weight.data_ptr() == model.transformer.wte.weight.data_ptr()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ungraft(merge(model)).save_pretrained(tmp_path / targets[0])
        again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / targets[0])
        assert again.config.tie_word_embeddings is False
        torch.testing.assert_close(logits(again), adapted, rtol=1e-4, atol=1e-4)


def test_an_adapter_on_other_layers_leaves_shared_weights_shared():
    model = tiny_model()
    graft(model, LoraConfig(r=4))
    ungraft(merge(shake(model)))
    assert model.lm_head.weight is model.transformer.wte.weight
    assert model.config.tie_word_embeddings


def test_merges_that_are_refused():
    model = quantize(tiny_model(), torch.float32)
    graft(model, LoraConfig(r=4, target_modules=["c_attn"]))
    with pytest.raises(TsugikiError, match=r"c_attn.weight is quantised.*load the base unquantised"):
        merge(model)
    model = grafted()
    assert merge(merge(model)) is model  # merging twice equals once
    unmerge(model)
    with torch.no_grad():
        next(layer for layer in model.modules() if hasattr(layer, "lora")).lora.B.fill_(float("inf"))
    with pytest.raises(TsugikiError, match="not finite in transformer"):
        merge(model)
    with disable_adapter(model):  # nothing has been merged
        assert torch.isfinite(logits(model)).all()
    with pytest.raises(TsugikiError, match="nothing is grafted"):
        merge(tiny_model())
