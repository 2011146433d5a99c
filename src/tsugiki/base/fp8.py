"""Weights in 8-bit floating point as transformers stores them ("fp8"; DeepSeek-V3, arXiv:2412.19437, section 3.3).

    W [out, in] ≈ qweight · scale, block by block    qweight: float8_e4m3fn; scale [⌈out / rows⌉, ⌈in / columns⌉]

The scale of a block maps its largest absolute value to 448, the largest number that float8_e4m3fn has.
"""

import torch
from torch import Tensor

Block = tuple[int, int]
"""The rows and columns that share one scale."""

_LARGEST = torch.finfo(torch.float8_e4m3fn).max


def decode(qweight: Tensor, scale: Tensor, block: Block) -> Tensor:
    """Return the dequantised weight, float32 [out, in].

    Args:
        qweight: the quantised values, float8_e4m3fn [out, in].
        scale: the scale of each block, [⌈out / rows⌉, ⌈in / columns⌉].
        block: rows and columns of a block.
    """
    return qweight.float() * _expand(scale, block, qweight.shape)


def encode(weight: Tensor, block: Block, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Quantise a float32 weight [out, in].

    Args:
        weight: the weight.
        block: rows and columns of a block.
        dtype: the dtype of the scales.

    Returns:
        The quantised values, float8_e4m3fn [out, in], and the scales, [⌈out / rows⌉, ⌈in / columns⌉].
    """
    rows, columns = (-(-size // step) * step for size, step in zip(weight.shape, block, strict=True))
    padded = weight.new_zeros(rows, columns)
    padded[: weight.shape[0], : weight.shape[1]] = weight
    blocks = padded.view(rows // block[0], block[0], columns // block[1], block[1])
    scale = (blocks.abs().amax((1, 3)) / _LARGEST).clamp(min=torch.finfo(torch.float32).tiny).to(dtype)
    return (weight / _expand(scale, block, weight.shape)).to(torch.float8_e4m3fn), scale


def _expand(scale: Tensor, block: Block, shape: torch.Size) -> Tensor:
    """Return the scale of each element, float32 of this shape."""
    each = scale.float().repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    return each[: shape[0], : shape[1]]
