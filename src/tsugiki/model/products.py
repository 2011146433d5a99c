"""Products with a weight; in float32 by the faster one of two libraries.

torch multiplies float32 by MKL, which uses AVX-512 on Intel's processors only. oneDNN, by which torch multiplies
bfloat16, takes less than half the time on an AMD EPYC of family 26. Both are measured once, in less than a tenth of a
second, and the times are kept in the cache for the next start. Without oneDNN, as on a Mac, torch multiplies by what it
has.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from tsugiki.io.measurements import is_faster, shortest_seconds
from tsugiki.native import can_read

LIBRARIES = "products in float32"
"""The key of the measurement."""
_GAIN = 1.1
"""oneDNN must be at least this many times as fast."""
_ROWS, _WIDTH = 256, 768
_REPEATS, _MOST_SECONDS = 5, 0.1
_LEAST_ROWS, _LEAST_WORK = 2, 1 << 20
"""Rows and multiplications from which on oneDNN is used: it prepares each product, and one row is read as fast by both
libraries."""
_DENSE = (Tensor, nn.Parameter)


def matrix_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x Wᵀ + b for x [..., in] and W [out, in], computed as the product of a matrix [rows, in].

    The result equals that of `F.linear`, in float32 up to rounding.

    While text is generated, the output head gets the slice [batch, 1, width] of the last hidden states. If neither the
    slice nor the weight requires a gradient, torch computes `F.linear` of it as a batched product, for which it copies
    the whole weight once for each row of the batch (measured in docs/log.md).
    """
    if x.dim() != 2:
        return matrix_product(x.reshape(-1, x.shape[-1]), weight, bias).view(*x.shape[:-1], -1)
    if uses_onednn(x, weight, bias):
        y: Tensor = _OneDnnProduct.apply(x, weight, bias)  # type: ignore[no-untyped-call]
        return y
    return F.linear(x, weight, bias)


class _OneDnnProduct(torch.autograd.Function):
    """x Wᵀ + b with a frozen weight; with and without gradients the result has the same bits."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        needs_x, _, needs_bias = ctx.needs_input_grad
        dx = matrix_product(dy, ctx.saved_tensors[0].T) if needs_x else None
        return dx, None, dy.sum(0) if needs_bias else None


def uses_onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    """Return whether `matrix_product` of these is computed by oneDNN, which gives no gradient of the weight."""
    if x.dtype is not torch.float32 or len(x) < _LEAST_ROWS or x.numel() * len(weight) < _LEAST_WORK:
        return False
    if torch.compiler.is_compiling() or weight.dtype is not torch.float32 or x.shape[1:] != weight.shape[1:]:
        return False
    given = (x, weight) if bias is None else (x, weight, bias)
    if not all(tensor.is_cpu and type(tensor) in _DENSE for tensor in given):
        return False
    # Other strides than these take a hundred times as long, and those of a bias are not looked at.
    if not all(matrix.is_contiguous() or matrix.mT.is_contiguous() for matrix in given[:2]):
        return False
    if not can_read(bias, torch.float32, len(weight)):
        return False
    if (torch.is_grad_enabled() and weight.requires_grad) or torch.is_autocast_enabled("cpu"):
        return False
    return onednn_is_faster()


def onednn_is_faster() -> bool:
    """Return whether oneDNN multiplies matrices of float32 faster than torch does by default."""
    has_onednn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return has_onednn and is_faster(LIBRARIES, measure, "onednn", "torch", _GAIN)


def measure() -> dict[str, float]:
    """Return the CPU seconds that one thread takes for a product in float32 by oneDNN and by torch's default."""
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(rows, _WIDTH, generator=generator) for rows in (_ROWS, _WIDTH))
    calls: dict[str, Callable[[], object]] = {
        "onednn": partial(torch.ops.mkldnn._linear_pointwise, x, weight, None, "none", [], ""),
        "torch": partial(F.linear, x, weight),
    }
    return shortest_seconds(calls, _REPEATS, _MOST_SECONDS)
