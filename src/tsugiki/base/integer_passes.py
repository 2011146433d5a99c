"""The passes over memory before and after an integer product: rounding to 8 bits, and scaling the int32 result.

In torch each takes several passes: a copy in float32, its largest and smallest number, a division, and so on. The C
functions of `tsugiki.native` do each in one, with the same bits. The `plain_` functions are the definitions.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from tsugiki.native import native

_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
"""The dtypes that there are C functions for."""


def rounded(x: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise the rows of x, so that x ≈ s · q with the largest absolute value of each row at ±127.

    Values that are not finite make s not finite, so that the result is not finite either.

    Args:
        x: [rows, n], of any float dtype.

    Returns:
        q, int8 [rows, n]; s, float32 [rows, 1].
    """
    call = _native("rounded", x)
    return round_rows(own_float(x)) if call is None else _rounded(call, x, None)[:2]


def rounded_with_loss(x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Quantise the rows of x · scale as `rounded` does, and say what each row loses in total.

    Args:
        x: [rows, n], of any float dtype.
        scale: float32 [n].

    Returns:
        q, int8 [rows, n]; s, float32 [rows, 1]; and Σ (x · scale - s · q), float32 [rows, 1].
    """
    call = _native("rounded", x)
    return plain_rounded_with_loss(x, scale) if call is None else _rounded(call, x, scale)


def plain_rounded_with_loss(x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute `rounded_with_loss` by its definition."""
    exact = own_float(x).mul_(scale)
    total = exact.sum(1, keepdim=True, dtype=torch.float64)
    q, s = round_rows(exact)
    return q, s, (total - s.double() * exact.sum(1, keepdim=True)).float()


def _rounded(call: Callable[..., None], x: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    rows, n = x.shape
    x = x if x.stride(1) == 1 else x.contiguous()
    q, s, lost = torch.empty(rows, n, dtype=torch.int8), torch.empty(rows, 1), torch.empty(rows, 1)
    call(x.data_ptr(), rows, n, x.stride(0), _pointer(scale), q.data_ptr(), s.data_ptr(), lost.data_ptr())
    return q, s, lost


def round_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Compute `rounded` by its definition, for x in float32, which is overwritten with the values of q."""
    largest = torch.maximum(x.amax(1, keepdim=True), -x.amin(1, keepdim=True))
    s = largest.div_(127).clamp_(min=torch.finfo(torch.float32).tiny)
    return x.div_(s).round_().to(torch.int8), s


def own_float(x: Tensor) -> Tensor:
    """Return a contiguous float32 copy, which may be overwritten."""
    return x.to(torch.float32, copy=True, memory_format=torch.contiguous_format)


def scaled(product: Tensor, s: Tensor, scale: Tensor, bias: Tensor | None, y: Tensor) -> None:
    """Write product · s · scale + bias into y.

    Args:
        product: int32 [rows, n]; may be overwritten.
        s: float32 [rows, 1].
        scale: float32 [n].
        bias: float32 [n].
        y: [rows, n], of any float dtype; its rows may be a part of longer ones.
    """
    call = _native("scaled", y)
    if call is None or y.stride(1) != 1:
        plain_scaled(product, s, scale, bias, y)
        return
    given = (product.data_ptr(), *product.shape, s.data_ptr(), scale.data_ptr(), _pointer(bias))
    call(*given, y.data_ptr(), y.stride(0))


def plain_scaled(product: Tensor, s: Tensor, scale: Tensor, bias: Tensor | None, y: Tensor) -> None:
    """Compute `scaled` by its definition."""
    result = _as_float(product).mul_(s).mul_(scale)
    y.copy_(result if bias is None else result.add_(bias))  # `addcmul` would round once less


def added(product: Tensor, s: Tensor, lost: Tensor, mean: Tensor, before: Tensor | None, out: Tensor) -> None:
    """Write before + product · s + lost · mean into `out`, which may be `before`.

    Args:
        product: int32 [rows, n]; may be overwritten.
        s: float32 [rows, 1].
        lost: float32 [rows, 1].
        mean: float32 [n].
        before: float32 [rows, n]; None for 0.
        out: [rows, n], of any float dtype, contiguous.
    """
    call = _native("added", out)
    if call is None:
        plain_added(product, s, lost, mean, before, out)
        return
    given = (product.data_ptr(), *product.shape, s.data_ptr(), lost.data_ptr(), mean.data_ptr())
    call(*given, _pointer(before), out.data_ptr())


def plain_added(product: Tensor, s: Tensor, lost: Tensor, mean: Tensor, before: Tensor | None, out: Tensor) -> None:
    """Compute `added` by its definition."""
    result = _as_float(product).mul_(s).add_(lost * mean)
    out.copy_(result if before is None else result.add_(before))


def _as_float(product: Tensor) -> Tensor:
    """Return an int32 tensor as float32, in its memory."""
    return product.view(torch.float32).copy_(product)


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _native(kind: str, like: Tensor) -> Callable[..., None] | None:
    """Return the C function for the dtype of a tensor, if there is one."""
    return native(kind, _DTYPES[like.dtype]) if like.dtype in _DTYPES and like.device.type == "cpu" else None
