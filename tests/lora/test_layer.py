"""The grafted layers against their formulas in float64."""

import copy

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from tests.errors import refused
from tests.tiny import in_pairs
from tsugiki import LoraConfig, graft, merge
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
    pair.dropout.p = 0.5
    assert not torch.equal(grafted.train()(x), grafted(x))
    assert torch.equal(grafted.eval()(x), grafted(x))


def test_a_bias_of_the_branch_is_merged_into_a_bias_alone():
    plain = nn.Sequential(nn.Linear(6, 5, bias=False))
    graft(plain, LoraConfig(r=2, target_modules=["0"], lora_bias=True))
    with refused("has no bias into which"):
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
