"""act(gate) · up, compared with its definition in float64 and with torch's operations."""

from functools import partial

import pytest
import torch
from torch.nn import functional as F

from tests.fast.definition import assert_equals_formula
from tests.fast.kept import kept_bytes
from tests.tiny import in_pairs, seeded
from tsugiki.fast import GELU_TANH, SILU, Swish, gated, plain_gated

ACTIVATIONS = {"silu": SILU, "gelu_tanh": GELU_TANH}
TOLERANCES = {torch.float64: 1e-12, torch.float32: 5e-6, torch.bfloat16: 2e-2}


def tensors(dtype: torch.dtype, shape: tuple[int, ...] = (9, 6)) -> list[torch.Tensor]:
    """Gate and up, which require gradients, and a gradient of the output."""
    generator = seeded(0)
    gate, up, grad = ((2 * torch.randn(shape, generator=generator)).to(dtype) for _ in range(3))
    return [gate.requires_grad_(), up.requires_grad_(), grad]


SHAPES = [(7,), (2, 5, 3), (2, 0, 3), (3, 100_000)]


@in_pairs(activation=ACTIVATIONS.values(), dtype=TOLERANCES, shape=SHAPES, frozen=[None, 0, 1])
def test_value_and_gradients_equal_the_definition(
    activation: Swish, dtype: torch.dtype, shape: tuple[int, ...], frozen: int | None
):
    *given, grad = tensors(dtype, shape)
    given = [tensor.requires_grad_(number != frozen) for number, tensor in enumerate(given)]
    ways = (partial(way, activation=activation) for way in (gated, plain_gated))
    assert_equals_formula(*ways, given, grad, TOLERANCES[dtype], (TOLERANCES[dtype] / 10,) * 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_large_values_give_no_nan(dtype: torch.dtype, activation: Swish):
    gate = torch.tensor([-1e4, -1e4, 0.0, 1e4, 1e4]).to(dtype).requires_grad_()
    up = torch.tensor([-1e4, 1e4, 1e4, -1e4, 1e4]).to(dtype).requires_grad_()
    h = gated(gate, up, activation)
    h.sum().backward()
    assert torch.equal(h, gate.clamp_min(0) * up)
    assert torch.equal(up.grad, gate.clamp_min(0))
    assert torch.equal(gate.grad, up * torch.tensor([0, 0, 0.5, 1, 1], dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_tensors_are_kept_for_backward(dtype: torch.dtype):
    gate, up, _ = tensors(dtype)
    assert kept_bytes(lambda: F.silu(gate) * up) == 3 * gate.nbytes
    for activation in ACTIVATIONS.values():
        assert kept_bytes(lambda activation=activation: gated(gate, up, activation)) == 2 * gate.nbytes
