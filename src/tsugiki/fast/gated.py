"""act(gate) · up, as in the feed-forward network of Llama, Gemma and Qwen.

    h = a(g) u,   dg = dh · u a'(g),   du = dh · a(g)

Autograd would keep g, a(g) and u for the backward pass. Here u a'(g) is computed in the forward pass, and only it and
a(g) are kept: two tensors instead of three.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tsugiki.fast.activations import Swish, eager_on_cpu, plain_swish, swish, value_and_slope


def plain_gated(gate: Tensor, up: Tensor, activation: Swish) -> Tensor:
    """Compute act(gate) · up by its definition."""
    return plain_swish(gate, activation) * up


def gated(gate: Tensor, up: Tensor, activation: Swish) -> Tensor:
    """Compute `plain_gated` for two tensors of the same shape [...] and dtype; keeps two such tensors for backward."""
    if not eager_on_cpu(gate, up) or gate.shape != up.shape or not torch.is_grad_enabled():
        return swish(gate, activation) * up
    return _Gated.apply(gate, up, activation)  # type: ignore[no-any-return, no-untyped-call]


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, activation: Swish) -> Tensor:
        value, slope = value_and_slope(gate, activation, times=up)
        ctx.save_for_backward(value, slope)
        return value * up

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        value, slope = ctx.saved_tensors
        return grad * slope, grad * value, None
