"""The grafted layers against their formulas in float64."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from tsugiki import LoraConfig, TsugikiError, graft, merge
from tsugiki.fast import use_fast_products
from tsugiki.lora import LoraLinear, new_pair, updated_weight, wrap
from tsugiki.model import features


def _grafted(layer: nn.Module, r: int = 3, scaling: float = 2.0, seed: int = 0):
    torch.manual_seed(seed)
    grafted = wrap(layer)
    grafted.lora = new_pair(layer, r, scaling, 0.0, False)
    return grafted


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(5,), (7, 5), (2, 3, 5)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_and_its_gradients_equal_the_formula(dtype: torch.dtype, shape: tuple[int, ...], bias: bool):
    torch.manual_seed(1)
    layer = nn.Linear(5, 4, bias=bias).to(dtype).requires_grad_(False)
    grafted = _grafted(layer)
    x = torch.randn(shape).to(dtype).requires_grad_()
    grafted(x).sum().backward()

    w, pair = layer.weight.double(), grafted.lora
    a, b = (p.detach().double().requires_grad_() for p in (pair.A, pair.B))
    y = x.detach().double().requires_grad_()
    expected = y @ w.T + 2.0 * (y @ a.T @ b.T) + (layer.bias.double() if bias else 0)
    expected.sum().backward()

    tolerance = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 2e-2}[dtype]
    assert grafted(x).dtype == dtype
    torch.testing.assert_close(grafted(x).double(), expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(x.grad.double(), y.grad, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(pair.A.grad.double(), a.grad, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(pair.B.grad.double(), b.grad, rtol=tolerance, atol=tolerance)
    assert layer.weight.grad is None


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("layer", [nn.Linear(5, 4), nn.Linear(5, 4, bias=False), Conv1D(4, 5)])
def test_gradients_of_the_layer_pass_gradcheck(layer: nn.Module, fused: bool):
    grafted = _grafted(layer.double().requires_grad_(False)).train()
    grafted.lora.dropout.p = 0.3
    if fused:
        use_fast_products(grafted)

    def forward(x: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(3)  # the same dropout mask each time
        return grafted(x)

    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(forward, (x, grafted.lora.A, grafted.lora.B))


def test_gradients_of_an_embedding_pass_gradcheck():
    grafted = _grafted(nn.Embedding(6, 4).double().requires_grad_(False))
    ids = torch.tensor([[0, 5, 2], [2, 2, 1]])
    assert torch.autograd.gradcheck(lambda *_: grafted(ids), (grafted.lora.A, grafted.lora.B))


def test_conv1d_equals_linear_with_the_transposed_weight():
    conv, linear = Conv1D(4, 5), nn.Linear(5, 4)
    with torch.no_grad():
        linear.weight.copy_(conv.weight.T)
        linear.bias.copy_(conv.bias)
    x = torch.randn(2, 3, 5)
    torch.testing.assert_close(_grafted(conv)(x), _grafted(linear)(x))
    assert features(conv) == features(linear) == (5, 4)


@pytest.mark.parametrize("layer", [nn.Linear(5, 4), Conv1D(4, 5), nn.Embedding(11, 4)], ids=["linear", "conv1d", "emb"])
def test_the_updated_weight_computes_what_the_grafted_layer_does(layer: nn.Module):
    grafted = _grafted(layer)
    x = torch.tensor([3, 7]) if isinstance(layer, nn.Embedding) else torch.randn(6, 5)
    adapted = grafted(x)
    weight = updated_weight(layer, grafted.lora, layer.weight)
    assert weight.shape == layer.weight.shape
    layer.weight.data = weight
    torch.testing.assert_close(layer(x), adapted)


def test_dropout_applies_to_the_low_rank_path_in_training_only():
    grafted = _grafted(nn.Linear(5, 4))
    grafted.lora.dropout.p = 0.5
    x = torch.randn(64, 5)
    assert not torch.equal(grafted.train()(x), grafted(x))
    assert torch.equal(grafted.eval()(x), grafted(x))
    grafted.lora.B.data.zero_()
    assert torch.equal(grafted.train()(x), grafted.base_layer(x))


def test_the_layer_shows_the_weight_and_bias_of_its_base():
    layer = nn.Linear(5, 4)
    grafted = LoraLinear(layer)
    assert grafted.weight is layer.weight
    assert grafted.bias is layer.bias


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
