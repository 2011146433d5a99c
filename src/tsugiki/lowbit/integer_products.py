"""Products with a frozen weight of 8-bit integers, W [out, in] = scale · w, in the forward and backward pass.

    y  = x Wᵀ ≈ s · (q wᵀ) · scale + bias      q, s: x rounded to 8 bits row by row, x ≈ s · q
    dx = dy W ≈ s · (q w)                      q, s: dy · scale rounded in the same way, with dither

A few features of a hidden state can be hundreds of times as large as the others. If they decided the step s, the others
would be lost. So s suits the ordinary numbers of a row, and the few numbers that are beyond 127 steps are kept exactly
as integers of 16 bits: what 8 bits cannot hold of them is a sparse matrix, whose product with w is added to q wᵀ. The
sum is still one of integers, so that a row has the same result beside any other rows.

The sum in dx runs over the output channels, so dy is multiplied by their scales before it is rounded; that is why the
backward pass needs no second copy of the weight. The products with w are exact in int32: only rounding loses precision.

The gradient of a softmax is near -1 for the target and tiny for thousands of other words. Rounded to the nearest
integer, these would all be 0 although their sum is 1. With dither, each becomes 1 with a frequency equal to its value.
The remaining error of the sum of a row, Σ (dy · scale - s · q), is multiplied by the mean row of w and added to dx.

If the weight is rotated (see `integer_passes`), x is rotated before it is rounded, and dx at the end.

The weight is given in tiles of output channels, so that a layer with fewer bits can decode one tile at a time.
Threads share the rows of x or dy, which are rounded and multiplied independently of each other, so that no bit of a
result depends on the number of threads.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from typing import TypeAlias

import torch
from torch import Tensor

from tsugiki.lowbit.integer_passes import Levels, add_large, added, dithered, levels_of, scaled
from tsugiki.lowbit.threads import in_threads

CHANNELS = 3072
"""Channels of a tile: enough for a fast product, and few enough for its result to stay in the cache."""
_ROWS = 256
"""Rows of an int32 result: enough for a fast product, and few enough to stay in the cache for the next operations."""
_ROWS_OF_SUM = 64
"""Rows that are converted at once for a sum, so that they stay in the cache."""
_LEAST_ROWS = 64
"""The smallest number of rows for which another thread is worth its overhead."""

Tile: TypeAlias = tuple[Tensor, Tensor]
"""Some output channels of a weight: int8 [channels, in], and their scales, float32 [channels]."""


@torch.no_grad()
def product(x: Tensor, tiles: Iterable[Tile], bias: Tensor | None, out_features: int, blocks: int = 1) -> Tensor:
    """Return x Wᵀ + bias for x [rows, in] and bias [out], [rows, out] of the dtype of x; W is given as W R in tiles.

    R is the rotation in `blocks` blocks (see `integer_passes`); with 1 there is none.
    """
    y = x.new_empty(len(x), out_features)
    rows = _rows_of_part(len(x))
    parts = in_threads(partial(levels_of, blocks=blocks), split(x, rows))
    start = 0
    for w, scale in tiles:
        channels = slice(start, start + len(w))
        b = None if bias is None else bias[channels].float()
        start = channels.stop
        in_threads(partial(_write_product, w, scale, b), list(zip(parts, split(y[:, channels], rows), strict=True)))
    return y


@torch.no_grad()
def input_gradient(dy: Tensor, tiles: Iterable[Tile], means: Tensor, in_features: int, blocks: int = 1) -> Tensor:
    """Return dy W for dy [rows, out], [rows, in] of the dtype of dy; W is given as W R in tiles, as for `product`.

    `means` has the mean row of w in each tile, float32 [tiles, in].
    """
    dx = dy.new_empty(len(dy), in_features)
    sums = dx if len(means) == 1 or dx.dtype == torch.float32 else torch.empty(len(dy), in_features)
    rows = _rows_of_part(len(dy))
    start = 0
    for (w, scale), mean in zip(tiles, means, strict=True):
        channels = slice(start, start + len(w))
        is_last = channels.stop == dy.shape[1]
        parts = list(zip(*(split(t, rows) for t in (dy[:, channels], sums, dx if is_last else sums)), strict=True))
        in_threads(partial(_add_gradient, w, scale, mean, start > 0, blocks if is_last else 1), parts)
        start = channels.stop
    return dx


def _write_product(w: Tensor, scale: Tensor, bias: Tensor | None, part: tuple[Levels, Tensor]) -> None:
    """Write the product of some rounded rows with a tile."""
    (q, s, large), y = part
    product = torch._int_mm(q, w.T)
    if large is not None:
        add_large(product, large, w)
    scaled(product, s, scale, bias, y)


def _add_gradient(
    w: Tensor, scale: Tensor, mean: Tensor, has_before: bool, blocks: int, part: tuple[Tensor, Tensor, Tensor]
) -> None:
    """Add the product of some rows with a tile to the sum of the tiles before it, if there are any."""
    dy, before, out = part
    q, s, lost = dithered(dy, scale)
    added(torch._int_mm(q, w), s, lost, mean, before if has_before else None, out, blocks)


def _rows_of_part(rows: int) -> int:
    """Return how many rows are computed at once: no more than a thread's share, unless that is too few."""
    return min(_ROWS, max(_LEAST_ROWS, math.ceil(rows / torch.get_num_threads())))


def split(t: Tensor, most: int, dim: int = 0) -> tuple[Tensor, ...]:
    """Split into pieces of at most `most` rows (or columns), as even as possible."""
    size = t.shape[dim]
    return t.chunk(math.ceil(size / most), dim) if size > most else (t,)


def in_pieces(function: Callable[..., None], tensors: Sequence[Tensor], numbers: int) -> None:
    """Call a function with pieces of some tensors, which have the same rows; on the CPU, threads share the pieces.

    A piece has as many rows as make about `numbers` elements of the first tensor, [rows, n].
    """
    rows = max(1, numbers // max(1, tensors[0].shape[1]))
    pieces = list(zip(*(split(tensor, rows) for tensor in tensors), strict=True))
    run = in_threads if tensors[0].device.type == "cpu" else map
    list(run(lambda piece: function(*piece), pieces))


def mean_row(w: Tensor) -> Tensor:
    """Return the mean of the rows of a tile, int8 [channels, in], in float32; the sum is exact."""
    return torch.stack([rows.float().sum(0) for rows in split(w, _ROWS_OF_SUM)]).sum(0) / len(w)


def has_exact_product(x: Tensor) -> bool:
    """Return whether the integer product can be used for these rows.

    It cannot for rows of one element, because torch's kernel then reads out of bounds.
    """
    return x.device.type == "cpu" and x.shape[1] > 1 and not torch.compiler.is_compiling() and exact_integers()


@cache
def exact_integers() -> bool:
    """Return whether this processor multiplies int8 matrices exactly.

    Without VNNI (`avx512_vnni` or AMX), oneDNN adds neighbouring products in 16 bits, which saturate without an error.
    """
    largest = torch.full((64, 256), 127, dtype=torch.int8)
    return bool((torch._int_mm(largest, largest.T) == 256 * 127 * 127).all())
