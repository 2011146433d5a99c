"""A frozen linear layer that multiplies 8-bit integers in the forward and backward pass, with one copy of its weight.

    W R [out, in] ≈ scale · qweight    qweight: int8, -127 to 127; scale: float32, one for each output channel

Rounding each row of the activations and each channel of the weight by its own scale is the vector-wise quantisation of
LLM.int8() (https://arxiv.org/abs/2208.07339). Instead of that paper's separate columns for outliers, the rotation R
spreads them (see `integer_passes`). The products are in `integer_products`.

`plain_product` and `plain_input_gradient` compute the same in floats, for devices without the integer product: in
float32 on a processor, in the dtype of the activations on an accelerator, which is slow in float32.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tsugiki.lowbit import integer_products
from tsugiki.lowbit.few_rows import few_integer_rows
from tsugiki.lowbit.integer_passes import blocks_of, dither_rows, plain_levels, plain_rotated, rotated, rounded
from tsugiki.lowbit.integer_products import CHANNELS, Tile, has_exact_product, in_pieces, mean_row, split
from tsugiki.lowbit.quantized_layer import QuantizedLayer

_PIECE = 1 << 19
"""The number of weights that a thread quantises in one task. In smaller tasks, starting them takes most of the time."""


class Int8Linear(QuantizedLayer):
    """A frozen linear layer in 8 bits.

    Attributes:
        qweight: the rotated and quantised weight, int8 [out, in].
    """

    def __init__(self, weight: Tensor, bias: nn.Parameter | None, dtype: torch.dtype) -> None:
        """Quantise `weight`, [out, in] of any float dtype and any strides; it is not kept."""
        super().__init__(weight, bias, dtype)
        qweight = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
        scale = torch.empty(len(weight), dtype=torch.float32, device=weight.device)
        with torch.no_grad():
            in_pieces(_round_piece, (weight, qweight, scale), _PIECE)
        self._set(qweight, scale)

    def _set(self, qweight: Tensor, scale: Tensor) -> None:
        means = torch.stack([mean_row(q) for q in split(qweight, CHANNELS)])
        self.qweight, self.scale, self.means = (nn.Parameter(t, requires_grad=False) for t in (qweight, scale, means))

    def select_outputs(self, outputs: Tensor) -> "Int8Linear":
        """Return a layer that computes only these outputs, int64 [n], with the same integers and scales."""
        bias = None if self.bias is None else nn.Parameter(self.bias.detach()[outputs], requires_grad=False)
        part = type(self).restored((len(outputs), self.in_features), bias, self.dtype, {})
        part._set(self.qweight.detach()[outputs], self.scale.detach()[outputs])
        return part

    @staticmethod
    def stored_bytes(out_features: int, in_features: int) -> int:
        """Return the size of a layer without its bias, in bytes."""
        groups = -(-out_features // CHANNELS)
        return out_features * in_features + 4 * out_features + 4 * groups * in_features

    @property
    def blocks(self) -> int:
        """The number of blocks of the rotation R."""
        return blocks_of(self.in_features)

    def dequantize(self) -> Tensor:
        """Return the weight that the quantised values stand for, float32 [out, in]."""
        return rotated(self.qweight * self.scale[:, None], self.blocks)

    def product_of_few(self, x: Tensor) -> Tensor | None:
        """Return the product for a few rows [..., in] by a C function; None where it does not apply."""
        own: Any = self._parameters  # an attribute takes a microsecond, which counts while text is generated
        return few_integer_rows(x, own["qweight"], own["scale"], self.bias, self.blocks)

    def product(self, x: Tensor) -> Tensor:
        """Return W x + bias for x [rows, in] of any float dtype, [rows, out] of the same; no gradient is recorded."""
        few = self.product_of_few(x)
        if few is not None:
            return few
        if not has_exact_product(x):
            return plain_product(x, self.qweight, self.scale, self.bias, self.blocks)
        return integer_products.product(x, self._tiles(), self.bias, self.out_features, self.blocks)

    def input_gradient(self, dy: Tensor) -> Tensor:
        """Return the gradient of `product` in x, [rows, in], for dy [rows, out] of any float dtype."""
        if has_exact_product(dy):
            return integer_products.input_gradient(dy, self._tiles(), self.means, self.in_features, self.blocks)
        return plain_input_gradient(dy, self.qweight, self.scale, self.blocks)

    def _tiles(self) -> Iterator[Tile]:
        return zip(split(self.qweight, CHANNELS), split(self.scale, CHANNELS), strict=True)


def _round_piece(weight: Tensor, q: Tensor, s: Tensor) -> None:
    """Rotate and quantise some channels of a weight: write their integers and scales."""
    values, scale = rounded(weight, blocks_of(weight.shape[1]))
    q.copy_(values)
    s.copy_(scale[:, 0])


def plain_product(x: Tensor, qweight: Tensor, scale: Tensor, bias: Tensor | None, blocks: int = 1) -> Tensor:
    """Compute `Int8Linear.product` in floats: the weight is dequantised, x is rotated and rounded row by row."""
    dtype = _plain_dtype(x)
    m, s = plain_levels(x, blocks)
    weight = qweight * scale.to(dtype)[:, None]
    return F.linear((m * s).to(dtype), weight, bias if bias is None else bias.to(dtype)).to(x.dtype)


def plain_input_gradient(dy: Tensor, qweight: Tensor, scale: Tensor, blocks: int = 1) -> Tensor:
    """Compute `Int8Linear.input_gradient` in floats: dy · scale is rounded row by row in groups of channels.

    dx is the sum of s q W over the groups, and of what the rounding lost, in its mean, times the mean row of W.
    """
    dtype = _plain_dtype(dy)
    dx = torch.zeros(len(dy), qweight.shape[1], device=dy.device)
    for part, of_part, w in zip(split(dy, CHANNELS, 1), split(scale, CHANNELS), split(qweight, CHANNELS), strict=True):
        scaled = part.float() * of_part
        q, s = dither_rows(scaled.clone())
        lost = (scaled - q * s).sum(1, keepdim=True)
        dx += (q * s).to(dtype) @ w.to(dtype) + lost * w.to(dtype).mean(0, dtype=torch.float32)
    return plain_rotated(dx, blocks).to(dy.dtype)


def _plain_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of the plain products."""
    return torch.float32 if x.device.type == "cpu" else x.dtype
