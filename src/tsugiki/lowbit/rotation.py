"""Rotation of rows by a Hadamard matrix before they are rounded to 8 bits.

A few features of a hidden state can be a hundred times as large as the others (SmolLM2, for example), and with a scale
for these, the others are rounded to few levels. Since R is orthogonal, x Wᵀ = (x R) (W R)ᵀ, and R mixes each feature
with others, so that no element of a row of x R is much larger than the rest. This is the rotation of QuaRot
(https://arxiv.org/abs/2404.00456), applied to each layer by itself, so that it suits every architecture.

R = H ⊗ I, where H is the Hadamard matrix of 1, 4, 16 or 64 rows, divided by the square root of that number: a row of x
is split into as many blocks, and the elements at the same position of all blocks are mixed. R is symmetric, so R R = I.
"""

import torch
from torch import Tensor

from tsugiki.native import can_read, native


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
