"""Weights in 8-bit floating point as transformers stores them ("fp8"; DeepSeek-V3, arXiv:2412.19437, section 3.3).

    W [out, in] ≈ codes · scale, block by block      codes: float8_e4m3fn; scale [⌈out / rows⌉, ⌈in / columns⌉]

A block's scale takes its largest value to 448, the largest that a code can say.
"""

import torch
from torch import Tensor

Block = tuple[int, int]
"""Rows and columns that have one scale."""

_LARGEST = torch.finfo(torch.float8_e4m3fn).max


def decode(codes: Tensor, scale: Tensor, block: Block) -> Tensor:
    """The weight [out, in] that they mean, in float32."""
    return codes.float() * _spread(scale, block, codes.shape)


def encode(weight: Tensor, block: Block, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Codes of a weight [out, in] of float32, and their scales in `dtype`."""
    rows, columns = (-(-size // step) * step for size, step in zip(weight.shape, block, strict=True))
    padded = weight.new_zeros(rows, columns)
    padded[: weight.shape[0], : weight.shape[1]] = weight
    blocks = padded.view(rows // block[0], block[0], columns // block[1], block[1])
    scale = (blocks.abs().amax((1, 3)) / _LARGEST).clamp(min=torch.finfo(torch.float32).tiny).to(dtype)
    return (weight / _spread(scale, block, weight.shape)).to(torch.float8_e4m3fn), scale


def _spread(scale: Tensor, block: Block, shape: torch.Size) -> Tensor:
    """The scale of each element."""
    each = scale.float().repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    return each[: shape[0], : shape[1]]
