"""The activations, compared with the formula in float64, with torch's and with transformers' modules."""

from functools import partial

import pytest
import torch

from tests.fast.definition import assert_equals_formula
from tests.fast.kept import kept_bytes
from tests.tiny import in_pairs
from tsugiki.fast import GELU_TANH, QUICK_GELU, SILU, Swish, plain_swish, swish

ACTIVATIONS = {"gelu_tanh": GELU_TANH, "quick_gelu": QUICK_GELU, "silu": SILU}
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}
"""The value is rounded once, the gradient twice: the slope and the product."""


@in_pairs(activation=ACTIVATIONS.values(), dtype=TOLERANCES, shape=[(), (7,), (2, 5, 3), (3, 0), (3, 100_000)])
def test_value_and_gradient_equal_the_definition(activation: Swish, dtype: torch.dtype, shape: tuple[int, ...]):
    torch.manual_seed(0)
    x, grad, tolerance = (3 * torch.randn(shape)).to(dtype), torch.randn(shape).to(dtype), TOLERANCES[dtype]
    ways = (partial(way, activation=activation) for way in (swish, plain_swish))
    assert_equals_formula(*ways, [x.requires_grad_()], grad, tolerance, (tolerance * 1e-2, tolerance * 1e-1))


@pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_16_bit_value_is_rounded_once(activation: Swish, dtype: torch.dtype):
    x = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(dtype)
    x = x[x.isfinite() & (x.abs() < 1e18)].requires_grad_()
    exact = x.detach().double().requires_grad_()
    plain_swish(exact, activation).sum().backward()
    swish(x, activation).sum().backward()
    if activation != SILU:  # torch's own, in float32
        assert torch.equal(swish(x, activation), plain_swish(exact, activation).to(dtype))
        assert torch.equal(x.grad, exact.grad.to(dtype))
    assert not swish(x, activation).isnan().any()
    assert not x.grad.isnan().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_strides_of_the_input_and_of_the_gradient_do_not_matter(dtype: torch.dtype):
    wide = torch.randn(6, 10).to(dtype)
    for x in (wide[:, :5], wide[:, ::2], wide.T, wide[:1].expand(4, 10)):
        whole, other = x.clone().requires_grad_(), x.detach().requires_grad_()
        grad = torch.randn(x.shape[::-1]).to(dtype).T
        swish(whole, GELU_TANH).backward(grad.contiguous())
        swish(other, GELU_TANH).backward(grad)
        assert torch.equal(swish(other, GELU_TANH), swish(whole, GELU_TANH))
        assert torch.equal(other.grad, whole.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_tensor_is_kept_for_backward(dtype: torch.dtype):
    x = torch.randn(32, 48).to(dtype).requires_grad_()
    for activation in ACTIVATIONS.values():
        assert kept_bytes(lambda activation=activation: swish(x, activation)) == x.nbytes


def test_a_compiler_and_autocast_use_the_definition():
    x = torch.randn(3, 4, requires_grad=True)
    compiled = torch.compile(lambda x: swish(x, GELU_TANH), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), plain_swish(x, GELU_TANH))
    with torch.autocast("cpu", torch.bfloat16):
        assert "_Swish" not in type(swish(x, GELU_TANH).grad_fn).__name__
    assert "_Swish" in type(swish(x, GELU_TANH).grad_fn).__name__
