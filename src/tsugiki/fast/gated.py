"""act(gate) · up, as in the feed-forward part of Llama, Gemma and Qwen.

    h = a(g) u,   dg = dh · u a'(g),   du = dh · a(g)

Autograd keeps g, a(g) and u. Here u a'(g) is found in the forward, and it and a(g) are kept: two tensors, not three.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tsugiki.fast.activations import Swish, eager_on_cpu, plain_swish, swish, value_and_slope


def plain_gated(gate: Tensor, up: Tensor, form: Swish) -> Tensor:
    """The definition."""
    return plain_swish(gate, form) * up


def gated(gate: Tensor, up: Tensor, form: Swish) -> Tensor:
    """`plain_gated` of two tensors of one shape [...] and dtype; keeps two such for the backward."""
    if not eager_on_cpu(gate, up) or gate.shape != up.shape or not torch.is_grad_enabled():
        return swish(gate, form) * up
    return _Gated.apply(gate, up, form)  # type: ignore[no-any-return, no-untyped-call]


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, form: Swish) -> Tensor:
        value, slope = value_and_slope(gate, form, times=up)
        ctx.save_for_backward(value, slope)
        return value * up

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        value, slope = ctx.saved_tensors
        return grad * slope, grad * value, None
