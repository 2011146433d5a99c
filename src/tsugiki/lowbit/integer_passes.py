"""The steps before and after an integer product: rotating, rounding to 8 bits, scaling the int32 result.

In torch each takes several passes over memory: a copy in float32, its largest and smallest element, a division, and so
on. The C functions of `tsugiki.native` take one pass each, with bit-identical results. The `plain_` functions are the
definitions.

A few features of a hidden state can be a hundred times as large as the others (SmolLM2, for example), and with a scale
for these, the others are rounded to few levels. Since R is orthogonal, x Wᵀ = (x R) (W R)ᵀ, and R mixes each feature
with others, so that no element of a row of x R is much larger than the rest. This is the rotation of QuaRot
(https://arxiv.org/abs/2404.00456), applied to each layer by itself, so that it suits every architecture.

R = H ⊗ I, where H is the Hadamard matrix of 1, 4, 16 or 64 rows, divided by the square root of that number: a row of x
is split into as many blocks, and the elements at the same position of all blocks are mixed. R is symmetric, so R R = I.
"""

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from tsugiki.native import address, can_read, native, native_for

LARGE = 8.0
"""From how many times the mean absolute value of its row on a number is large; the same as in native.c."""
LEAST_SHARE = 1 / 128
"""The smallest share of a row's largest number that is 127 steps; the same as in native.c."""
_DITHER_OF_COLUMN, _DITHER_OF_ROW = (constant - (1 << 32) for constant in (0x9E3779B1, 0x85EBCA6B))
"""The multipliers of the column and of the row's scale, modulo 2³² as int32; the same as in native.c."""


class Large(NamedTuple):
    """What is left of the levels that are beyond ±127, as a sparse matrix [rows, n]."""

    ends: Tensor
    """How many numbers there are in each row and the rows before it, int64 [rows]."""
    columns: Tensor
    values: Tensor
    """Their columns and values, int32."""


class Levels(NamedTuple):
    """Rounded rows: x R ≈ s · (q + large)."""

    q: Tensor
    """int8 [rows, n]."""
    s: Tensor
    """float32 [rows, 1]."""
    large: Large | None
    """None if no level is beyond ±127."""


def levels_of(x: Tensor, blocks: int = 1) -> Levels:
    """Rotate and round the rows of x by a step that suits their ordinary numbers; see `plain_levels`.

    Values that are not finite make s not finite, so that the result is not finite either.

    Args:
        x: [rows, n], of any float dtype.
        blocks: the number of blocks of the rotation R; 1: no rotation.
    """
    call = native_for("rounded", x)
    if call is None:
        return _without_large(*plain_levels(x, blocks))
    (x, q, s), exact = _row_buffers(x), torch.empty(x.shape[1])
    ends, most = torch.zeros(len(x), dtype=torch.int64), int(x.numel() / LARGE)
    columns, values = torch.empty(most, dtype=torch.int32), torch.empty(most, dtype=torch.int32)
    given = (x.data_ptr(), *x.shape, x.stride(0), blocks, q.data_ptr(), s.data_ptr(), exact.data_ptr())
    call(*given, ends.data_ptr(), columns.data_ptr(), values.data_ptr())
    return Levels(q, s, Large(ends, columns, values) if len(x) and ends[-1] else None)


def plain_levels(x: Tensor, blocks: int) -> tuple[Tensor, Tensor]:
    """Return the integers m, int32 [rows, n], and s, float32 [rows, 1], for which x R ≈ s · m.

    The largest number of a row is 127 steps, unless it is more than LARGE times the row's mean absolute value. Then
    LARGE times the mean is 127 steps, so that the large number does not take the precision of the others, and the m of
    large numbers is beyond ±127, by a factor of 1 / LEAST_SHARE at most. Because of the mean, fewer than n / LARGE
    numbers of a row are large. The mean is computed in integers, so that it does not depend on the order of a sum.
    """
    exact = plain_rotated(own_float(x), blocks)
    s = _step(exact)
    total = (exact.abs() * (256 / s)).round_().to(torch.int32).sum(1, keepdim=True)
    share = (total.float() * (LARGE / (127 * 256 * x.shape[1]))).clamp_(LEAST_SHARE, 1)
    s = torch.where(s < 1e-30, s, s * share)  # 256 / s must be finite
    return torch.where(s.isfinite(), exact.div_(s).round_(), 0).to(torch.int32), s


def _without_large(m: Tensor, s: Tensor) -> Levels:
    """Split integers into those of 8 bits and the rest."""
    q = m.clamp(-127, 127)
    rest = m - q
    rows, columns = rest.nonzero(as_tuple=True)
    ends = (rest != 0).sum(1).cumsum(0)
    large = Large(ends, columns.int(), rest[rows, columns]) if len(rows) else None
    return Levels(q.to(torch.int8), s, large)


def add_large(product: Tensor, large: Large, w: Tensor) -> None:
    """Add the product of the large numbers with wᵀ to q wᵀ, int32 [rows, channels], exactly.

    Args:
        product: q wᵀ, contiguous.
        large: the large numbers of the rows.
        w: int8 [channels, n].
    """
    call = native("large_added") if product.device.type == "cpu" and w.is_contiguous() else None
    if call is None:
        plain_add_large(product, large, w)
        return
    width = w.shape[1]
    columns_of_w, is_needed = torch.empty(width, 64, dtype=torch.int8), torch.empty(width, dtype=torch.uint8)
    given = (product.data_ptr(), *product.shape, width, *(part.data_ptr() for part in large))
    call(*given, w.data_ptr(), columns_of_w.data_ptr(), is_needed.data_ptr())


def plain_add_large(product: Tensor, large: Large, w: Tensor) -> None:
    """Compute `add_large` by its definition."""
    ends, count = large.ends, int(large.ends[-1])
    rows = torch.repeat_interleave(ends.diff(prepend=ends.new_zeros(1)))
    columns, place = large.columns[:count].unique(return_inverse=True)  # type: ignore[no-untyped-call]
    values = torch.zeros(len(ends), len(columns), dtype=torch.float64)
    values[rows, place] = large.values[:count].double()
    product += (values @ w[:, columns].double().T).to(torch.int32)


def rounded(x: Tensor, blocks: int = 1) -> tuple[Tensor, Tensor]:
    """Rotate and quantise the rows of a weight x, so that x R ≈ s · q with the largest value of each row at ±127.

    Values that are not finite make s not finite.

    Args:
        x: [rows, n], of any float dtype.
        blocks: the number of blocks of the rotation R; 1: no rotation.

    Returns:
        q, int8 [rows, n]; s, float32 [rows, 1].
    """
    call = native_for("rounded", x) if x.shape[1] % blocks == 0 else None
    if call is None:
        return plain_rounded(x, blocks)
    (x, q, s), exact = _row_buffers(x), torch.empty(x.shape[1])
    given = (x.data_ptr(), *x.shape, x.stride(0), blocks, q.data_ptr(), s.data_ptr(), exact.data_ptr())
    call(*given, None, None, None)
    return q, s


def plain_rounded(x: Tensor, blocks: int) -> tuple[Tensor, Tensor]:
    """Compute `rounded` by its definition."""
    exact = plain_rotated(own_float(x), blocks)
    s = _step(exact)
    return exact.div_(s).round_().to(torch.int8), s


def dithered(x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Quantise the rows of x · scale with dither, and return the remaining error of the sum of each row.

    Before a number is rounded, an offset between -1/2 and 1/2 is added to it, so that a number of 0.1 becomes 1 in one
    of ten columns, where rounding to the nearest integer would give 0 in all of them. The offsets are computed from the
    column and the scale of the row, without random state, so that the result for a row is the same in every batch.

    Args:
        x: [rows, n], of any float dtype.
        scale: float32 [n].

    Returns:
        q, int8 [rows, n]; s, float32 [rows, 1]; and Σ (x · scale - s · q), float32 [rows, 1].
    """
    call = native_for("dithered", x) if can_read(scale, torch.float32, x.shape[1]) else None
    if call is None:
        return plain_dithered(x, scale)
    (x, q, s), lost = _row_buffers(x), torch.empty(len(x), 1)
    call(x.data_ptr(), *x.shape, x.stride(0), scale.data_ptr(), q.data_ptr(), s.data_ptr(), lost.data_ptr())
    return q, s, lost


def plain_dithered(x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute `dithered` by its definition."""
    exact = own_float(x).mul_(scale)
    total = exact.sum(1, keepdim=True, dtype=torch.float64)
    q, s = dither_rows(exact)
    return q, s, (total - s.double() * q.sum(1, keepdim=True)).float()


def dither_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise the rows of x, float32, which is overwritten, with dither; see `dithered`.

    The offsets are a Weyl sequence: multiples of an odd constant modulo 2³², which spread evenly and do not repeat.
    """
    s = _step(x)
    column = torch.arange(x.shape[1], dtype=torch.int32, device=x.device)
    # The last bits of the scale depend on the processor, so they are left out.
    of_row = (s.view(torch.int32) >> 12) * _DITHER_OF_ROW
    offset = (column * _DITHER_OF_COLUMN + of_row) >> 8  # 24 bits, exact in float32
    x.div_(s).add_(offset.float().mul_(0.499 / (1 << 23)))  # below 1/2, so that 127 stays 127
    return x.round_().to(torch.int8), s


def _row_buffers(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return x with contiguous rows, and memory for q and s."""
    return x if x.stride(1) == 1 else x.contiguous(), torch.empty(x.shape, dtype=torch.int8), torch.empty(len(x), 1)


def _step(x: Tensor) -> Tensor:
    """Return s, float32 [rows, 1], for which the largest absolute value of each row is 127."""
    largest = torch.maximum(x.amax(1, keepdim=True), -x.amin(1, keepdim=True))
    return largest.div_(127).clamp_(min=torch.finfo(torch.float32).tiny)


def own_float(x: Tensor) -> Tensor:
    """Return a contiguous float32 copy, which may be overwritten."""
    return x.to(torch.float32, copy=True, memory_format=torch.contiguous_format)


def scaled(product: Tensor, s: Tensor, scale: Tensor, bias: Tensor | None, y: Tensor) -> None:
    """Write product · s · scale + bias into y.

    Args:
        product: int32 [rows, n]; may be overwritten.
        s: float32 [rows, 1].
        scale: float32 [n].
        bias: float32 [n], or None.
        y: [rows, n], of any float dtype; may be a slice of columns of a larger matrix.
    """
    call = native_for("scaled", y) if y.stride(1) == 1 and _can_scale(product, s, scale, bias, y) else None
    if call is None:
        plain_scaled(product, s, scale, bias, y)
        return
    given = (product.data_ptr(), *product.shape, s.data_ptr(), scale.data_ptr(), address(bias))
    call(*given, y.data_ptr(), y.stride(0))


def _can_scale(product: Tensor, s: Tensor, scale: Tensor, other: Tensor | None, out: Tensor) -> bool:
    """Return whether C functions can read product [rows, n], s [rows, 1], scale [n] and another vector [n]."""
    rows, n = out.shape
    return (
        can_read(product, torch.int32, rows, n)
        and can_read(s, torch.float32, rows, 1)
        and can_read(scale, torch.float32, n)
        and can_read(other, torch.float32, n)
    )


def plain_scaled(product: Tensor, s: Tensor, scale: Tensor, bias: Tensor | None, y: Tensor) -> None:
    """Compute `scaled` by its definition."""
    result = _as_float(product).mul_(s).mul_(scale)
    y.copy_(result if bias is None else result.add_(bias))  # `addcmul` would round once less


def added(
    product: Tensor, s: Tensor, lost: Tensor, mean: Tensor, before: Tensor | None, out: Tensor, blocks: int = 1
) -> None:
    """Write (before + product · s + lost · mean) R into `out`, which may be `before`.

    Args:
        product: int32 [rows, n]; may be overwritten.
        s: float32 [rows, 1].
        lost: float32 [rows, 1].
        mean: float32 [n].
        before: float32 [rows, n]; None for 0.
        out: [rows, n], of any float dtype, contiguous.
        blocks: the number of blocks of the rotation R; 1: no rotation.
    """
    fits = _can_scale(product, s, mean, None, out) and can_read(lost, torch.float32, len(out), 1)
    fits = fits and can_read(before, torch.float32, *out.shape) and out.is_contiguous() and out.shape[1] % blocks == 0
    call = native_for("added", out) if fits else None
    if call is None:
        plain_added(product, s, lost, mean, before, out, blocks)
        return
    exact = torch.empty(product.shape[1])
    given = (product.data_ptr(), *product.shape, s.data_ptr(), lost.data_ptr(), mean.data_ptr())
    call(*given, address(before), blocks, out.data_ptr(), exact.data_ptr())


def plain_added(
    product: Tensor, s: Tensor, lost: Tensor, mean: Tensor, before: Tensor | None, out: Tensor, blocks: int
) -> None:
    """Compute `added` by its definition."""
    result = _as_float(product).mul_(s).add_(lost * mean)
    out.copy_(plain_rotated(result if before is None else result.add_(before), blocks))


def _as_float(product: Tensor) -> Tensor:
    """Return an int32 tensor as float32, in its memory."""
    return product.view(torch.float32).copy_(product)


@cache
def blocks_of(width: int) -> int:
    """Return the number of blocks for rows of this width: the largest of 64, 16, 4 and 1 that divides it."""
    return next(blocks for blocks in (64, 16, 4, 1) if width % blocks == 0)


def rotated(x: Tensor, blocks: int) -> Tensor:
    """Return x R, [rows, n]. Rotating twice gives x again, to rounding.

    Args:
        x: float32 [rows, n], contiguous; it may be overwritten.
        blocks: 1, 4, 16 or 64, a divisor of n.
    """
    call = native("rotated") if can_read(x, torch.float32, *x.shape) and x.shape[1] % blocks == 0 else None
    if call is None:
        return plain_rotated(x, blocks)
    call(x.data_ptr(), *x.shape, blocks)
    return x


def plain_rotated(x: Tensor, blocks: int) -> Tensor:
    """Compute `rotated` by its definition: H of 4 blocks is applied to the quarters of a row, then of each quarter."""
    rows, n = x.shape
    quarter = n // 4
    while quarter >= n // blocks and blocks > 1:
        a, b, c, d = x.view(rows, n // (4 * quarter), 4, quarter).unbind(2)
        mixed = (a + b) + (c + d), (a - b) + (c - d), (a + b) - (c + d), (a - b) - (c - d)
        x = torch.stack(mixed, 2).mul_(0.5).view(rows, n)
        quarter //= 4
    return x
