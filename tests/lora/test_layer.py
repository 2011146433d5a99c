"""The grafted layers against their formulas in float64."""

import copy

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from tests.tiny import in_pairs
from tsugiki import LoraConfig, TsugikiError, graft, merge
from tsugiki.fast import use_fast_products
from tsugiki.lora import LoraLinear, new_pair, wrap
from tsugiki.model import oriented


def _grafted(layer: nn.Module, r: int = 3, scaling: float = 2.0, seed: int = 0):
    torch.manual_seed(seed)
    grafted = wrap(layer)
    grafted.lora = new_pair(layer, r, scaling, 0.0, False)
    return grafted


LAYERS = [nn.Linear(5, 4), nn.Linear(5, 4, bias=False), Conv1D(4, 5)]


TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 2e-2}


@in_pairs(layer=LAYERS, dtype=TOLERANCES, shape=[(5,), (7, 5), (2, 3, 5)])
def test_linear_and_its_gradients_equal_the_formula(layer: nn.Module, shape: tuple[int, ...], dtype: torch.dtype):
    torch.manual_seed(1)
    layer = copy.deepcopy(layer).to(dtype).requires_grad_(False)
    grafted = _grafted(layer)
    assert torch.equal(grafted.weight, layer.weight)
    x, pair = torch.randn(shape).to(dtype).requires_grad_(), grafted.lora
    moved = [t.detach().double().requires_grad_() for t in (x, pair.A, pair.B)]
    expected = moved[0] @ oriented(layer).double().T + 2.0 * (moved[0] @ moved[1].T @ moved[2].T)
    expected = expected if layer.bias is None else expected + layer.bias.double()
    y = grafted(x)
    assert y.dtype == dtype
    found = [y, *torch.autograd.grad(y.sum(), [x, pair.A, pair.B])]
    for ours, exact in zip(found, [expected, *torch.autograd.grad(expected.sum(), moved)], strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=TOLERANCES[dtype], atol=TOLERANCES[dtype])


@pytest.mark.parametrize("layer", LAYERS)
def test_gradients_of_the_layer_pass_gradcheck(layer: nn.Module):
    grafted = _grafted(copy.deepcopy(layer).double().requires_grad_(False)).train()
    grafted.lora.dropout.p = 0.3

    def forward(x: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(3)  # the same dropout mask each time
        return grafted(x)

    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(forward, (x, grafted.lora.A, grafted.lora.B))
    assert not torch.equal(grafted(x), grafted(x))
    assert torch.equal(grafted.eval()(x), grafted(x))
    grafted.lora.B.data.zero_()
    assert torch.equal(grafted.train()(x), grafted.base_layer(x))


def test_gradients_of_an_embedding_pass_gradcheck():
    grafted = _grafted(nn.Embedding(6, 4).double().requires_grad_(False))
    ids = torch.tensor([[0, 5, 2], [2, 2, 1]])
    assert torch.autograd.gradcheck(lambda *_: grafted(ids), (grafted.lora.A, grafted.lora.B))


def test_a_bias_of_the_branch_is_scaled_and_merged():
    layer = nn.Linear(6, 5)
    model = nn.Sequential(layer)
    graft(model, LoraConfig(r=2, lora_alpha=6, target_modules=["0"], lora_bias=True))
    pair = model[0].lora
    with torch.no_grad():
        for parameter in (pair.B, pair.bias):
            parameter.normal_()
    x = torch.randn(3, 6)
    expected = layer(x) + 3 * (x @ pair.A.T @ pair.B.T + pair.bias)
    assert torch.allclose(model(x), expected, atol=1e-6)
    model(x).sum().backward()
    assert torch.allclose(pair.bias.grad, torch.full((5,), 9.0))
    assert torch.allclose(merge(model)(x), expected, atol=1e-5)
    plain = nn.Sequential(nn.Linear(6, 5, bias=False))
    graft(plain, LoraConfig(r=2, target_modules=["0"], lora_bias=True))
    with pytest.raises(TsugikiError, match="has no bias into which"):
        merge(plain)


@torch.no_grad()
def test_without_a_pair_the_frozen_layer_computes_to_the_bit_what_it_did_while_it_could_train():
    """For a transposed batch, as in LED and FSMT, some processors add in another order once the weight is frozen."""
    torch.manual_seed(0)
    layer, x = nn.Linear(32, 48), torch.randn(2, 24, 32).transpose(0, 1)
    before = layer(x)
    grafted = LoraLinear(layer.requires_grad_(False))
    use_fast_products(grafted)
    assert torch.equal(grafted(x), before)
