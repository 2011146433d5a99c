"""act(gate) · up, compared with its definition in float64 and with torch's operations."""

import pytest
import torch
from torch.nn import functional as F

from tests.fast.kept import kept_bytes
from tests.tiny import in_pairs
from tsugiki.fast import GELU_TANH, SILU, Swish, gated, plain_gated

ACTIVATIONS = {"silu": SILU, "gelu_tanh": GELU_TANH}
TOLERANCES = {torch.float64: 1e-12, torch.float32: 5e-6, torch.bfloat16: 2e-2}


def tensors(dtype: torch.dtype, shape: tuple[int, ...] = (9, 6)) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [(2 * torch.randn(shape, generator=generator)).to(dtype) for _ in range(3)]


@in_pairs(activation=ACTIVATIONS.values(), dtype=TOLERANCES, shape=[(7,), (2, 5, 3), (2, 0, 3), (3, 100_000)])
def test_value_and_gradients_equal_the_definition(activation: Swish, dtype: torch.dtype, shape: tuple[int, ...]):
    gate, up, grad = tensors(dtype, shape)
    h = gated(gate.requires_grad_(), up.requires_grad_(), activation)
    h.backward(grad)
    exact = [tensor.detach().double().requires_grad_() for tensor in (gate, up)]
    plain = plain_gated(*exact, activation)
    plain.backward(grad.double())
    tolerance = TOLERANCES[dtype]
    for ours, theirs in ((h, plain), (gate.grad, exact[0].grad), (up.grad, exact[1].grad)):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.double(), theirs, rtol=tolerance, atol=tolerance)
    with torch.no_grad():
        assert torch.equal(gated(gate, up, activation), h)


@pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_gradients_pass_gradcheck(activation: Swish):
    gate, up, _ = tensors(torch.float64)
    assert torch.autograd.gradcheck(lambda a, b: gated(a, b, activation), (gate.requires_grad_(), up.requires_grad_()))
    assert torch.autograd.gradcheck(lambda a: gated(a, up.detach(), activation), gate)
    assert torch.autograd.gradcheck(lambda b: gated(gate.detach(), b, activation), up)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_gate_and_up_can_be_halves_of_one_tensor(dtype: torch.dtype, activation: Swish):
    gate, up, grad = tensors(dtype)
    joined = torch.cat([gate, up], dim=-1).requires_grad_()
    h = gated(*joined.chunk(2, dim=-1), activation)
    h.backward(grad)
    expected = gated(gate.requires_grad_(), up.requires_grad_(), activation)
    expected.backward(grad)
    torch.testing.assert_close(h, expected)
    torch.testing.assert_close(joined.grad, torch.cat([gate.grad, up.grad], dim=-1))


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
    gate, up = gate.requires_grad_(), up.requires_grad_()
    assert kept_bytes(lambda: F.silu(gate) * up) == 3 * gate.nbytes
    for activation in ACTIVATIONS.values():
        assert kept_bytes(lambda activation=activation: gated(gate, up, activation)) == 2 * gate.nbytes
