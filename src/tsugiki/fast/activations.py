"""Activations of the form x σ(z) with a cubic z: GELU's tanh approximation, quick GELU and SiLU, alone or gated.

    y  = x σ(z),   z = linear x + cubic x³
    y' = σ(z) + x σ(z) (1 - σ(z)) (linear + 3 cubic x²)

Computing σ takes most of the time, so y' is computed together with y and kept instead of x: the backward pass is then
one product. In 16 bits x has only 65,536 possible values: y and y' of all of them are computed once, in float64, and
looked up afterwards. torch's own GELU takes three times as long on a processor, because its tanh is slow; torch's SiLU
is fast enough and is used as it is.

In the feed-forward network of Llama, Gemma and Qwen, the activation a of a gate g multiplies another input u:

    h = a(g) u,   dg = dh · u a'(g),   du = dh · a(g)

Autograd would keep g, a(g) and u for the backward pass. Here u a'(g) is computed in the forward pass, and only it and
a(g) are kept: two tensors instead of three.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import repeat
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from tsugiki.native import native

_CHUNK = 1 << 18  # elements at once: small enough for intermediate results to stay in the cache, large enough for speed


@dataclass(frozen=True)
class Swish:
    """The activation x σ(linear x + cubic x³)."""

    linear: float
    cubic: float = 0.0


SILU = Swish(1.0)
QUICK_GELU = Swish(1.702)
GELU_TANH = Swish(2 * math.sqrt(2 / math.pi), 2 * math.sqrt(2 / math.pi) * 0.044715)
"""x/2 (1 + tanh(√(2/π) (x + 0.044715 x³))), since (1 + tanh u) / 2 = σ(2u)."""


def plain_swish(x: Tensor, activation: Swish) -> Tensor:
    """Compute the activation by its definition."""
    return x * torch.sigmoid(activation.linear * x + activation.cubic * x**3)


def swish(x: Tensor, activation: Swish) -> Tensor:
    """Compute `plain_swish` in the dtype of x [...], rounding once; keeps y', as large as x, for the backward pass."""
    if activation == SILU:
        return F.silu(x)
    if not eager_on_cpu(x):
        return plain_swish(x, activation)
    if not torch.is_grad_enabled():
        return value_and_slope(x, activation)[0]
    return _Swish.apply(x, activation)  # type: ignore[no-any-return, no-untyped-call]


def eager_on_cpu(*tensors: Tensor) -> bool:
    """Return whether our own functions should compute with these tensors.

    They must be floats of one dtype on the processor, without autocast. Accelerators have fast kernels of their own,
    and a compiler fuses the plain definitions.
    """
    return (
        all(tensor.device.type == "cpu" and tensor.dtype == tensors[0].dtype for tensor in tensors)
        and tensors[0].is_floating_point()
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
    )


@torch.no_grad()
def value_and_slope(x: Tensor, activation: Swish, times: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return y and y', or y and y' · times, both of the shape and dtype of x and without gradients."""
    if activation == SILU:
        return F.silu(x), torch.ops.aten.silu_backward(torch.ones_like(x) if times is None else times, x)
    x, times = x.contiguous(), None if times is None else times.contiguous()
    return (_look_up if x.dtype.itemsize == 2 else _compute)(x, activation, times)


class _Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, activation: Swish) -> Tensor:
        value, slope = value_and_slope(x, activation)
        ctx.save_for_backward(slope)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        return grad * slope, None


def _compute(x: Tensor, activation: Swish, times: Tensor | None) -> tuple[Tensor, Tensor]:
    value, slope = torch.empty_like(x), torch.empty_like(x)
    linear = torch.tensor(activation.linear, dtype=x.dtype, device="cpu")
    for x_, value_, slope_, times_ in _chunks(x, value, slope, times):
        ratio = torch.addcmul(linear, x_, x_, value=activation.cubic)
        sigma = torch.mul(ratio, x_).sigmoid_()
        torch.mul(x_, sigma, out=value_)
        d_z = torch.add(-2 * linear, ratio, alpha=3, out=ratio)
        torch.addcmul(value_, value_, sigma, value=-1, out=slope_)
        torch.addcmul(sigma, slope_, d_z, out=slope_)
        if times_ is not None:
            slope_.mul_(times_)
    return value, slope


def _look_up(x: Tensor, activation: Swish, times: Tensor | None) -> tuple[Tensor, Tensor]:
    value, slope = torch.empty_like(x), torch.empty_like(x)
    table = _table(activation, x.dtype)
    call = native("looked_up") if x.is_cpu else None
    if call is not None:
        call(x.data_ptr(), x.numel(), table.data_ptr(), value.data_ptr(), slope.data_ptr())
        return value, slope if times is None else slope.mul_(times)
    for x_, value_, slope_, times_ in _chunks(x, value, slope, times):
        both = table.index_select(0, x_.view(torch.uint16).int())
        value_.view(torch.int16).copy_(both)
        slope_.view(torch.int16).copy_(both.bitwise_right_shift_(16))
        if times_ is not None:
            slope_.mul_(times_)
    return value, slope


@cache
def _table(activation: Swish, dtype: torch.dtype) -> Tensor:
    """Return y and y' for every value of a 16-bit dtype, as int32 [65536].

    The index is the bits of x. The low 16 bits of an entry are those of y, the high 16 bits those of y'.
    """
    with torch.inference_mode(False), torch.no_grad():
        x = torch.arange(1 << 16, dtype=torch.int32, device="cpu").to(torch.int16).view(dtype).double()
        value, slope = (bits.to(dtype).view(torch.int16).int() for bits in _compute(x, activation, None))
        return (slope << 16) | (value & 0xFFFF)


def _chunks(x: Tensor, value: Tensor, slope: Tensor, times: Tensor | None) -> Iterator[tuple[Any, ...]]:
    """Yield matching flat pieces of the four tensors; None in the place of `times` if that is None."""
    pieces = [torch.split(tensor.view(-1), _CHUNK) for tensor in (x, value, slope)]
    return zip(*pieces, repeat(None) if times is None else torch.split(times.view(-1), _CHUNK), strict=False)


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
