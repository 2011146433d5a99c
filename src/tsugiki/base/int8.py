"""A frozen linear layer that multiplies 8-bit integers in the forward and backward pass, with one copy of its weight.

    W [out, in] ≈ scale · qweight    qweight: int8, -127 to 127; scale: float32, one for each output channel

Rounding each row of the activations and each channel of the weight by its own scale is the vector-wise quantisation of
LLM.int8() (https://arxiv.org/abs/2208.07339), without that paper's separate columns for outliers. The products are in
`integer_products`.

`plain_product` and `plain_input_gradient` compute the same in floats, for devices without the integer product: in
float32 on a processor, in the dtype of the activations on an accelerator, which is slow in float32.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tsugiki.base import integer_products
from tsugiki.base.integer_passes import own_float, round_rows, rounded
from tsugiki.base.integer_products import CHANNELS, Tile, has_exact_product, mean_row, split
from tsugiki.base.quantized_layer import QuantizedLayer
from tsugiki.base.threads import in_threads

_ROWS = 64
"""Channels that are quantised at once, so that they stay in the cache."""


class Int8Linear(QuantizedLayer):
    """A frozen linear layer in 8 bits.

    Attributes:
        qweight: the quantised weight, int8 [out, in].
    """

    def __init__(self, weight: Tensor, bias: nn.Parameter | None, dtype: torch.dtype) -> None:
        """Quantise `weight`, [out, in] of any float dtype and any strides; it is not kept."""
        super().__init__(weight, bias, dtype)
        qweight = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
        scale = torch.empty(len(weight), dtype=torch.float32, device=weight.device)
        with torch.no_grad():
            pieces = list(zip(*(split(t, _ROWS) for t in (weight, qweight, scale)), strict=True))
            if weight.device.type == "cpu":
                in_threads(_round_piece, pieces)
            else:
                for piece in pieces:
                    _round_piece(piece)
            means = torch.stack([mean_row(q) for q in split(qweight, CHANNELS)])
        self.qweight, self.scale, self.means = (nn.Parameter(t, requires_grad=False) for t in (qweight, scale, means))

    @staticmethod
    def stored_bytes(out_features: int, in_features: int) -> int:
        """Return the bytes of a layer without its bias."""
        groups = -(-out_features // CHANNELS)
        return out_features * in_features + 4 * out_features + 4 * groups * in_features

    def dequantize(self) -> Tensor:
        """Return the exact weight that the quantised values stand for, float32 [out, in]."""
        return self.qweight * self.scale[:, None]

    def product(self, x: Tensor) -> Tensor:
        """Return W x + bias for x [rows, in] of any float dtype, [rows, out] of the same; no gradient is recorded."""
        if has_exact_product(x):
            return integer_products.product(x, self._tiles(), self.bias, self.out_features)
        return plain_product(x, self.qweight, self.scale, self.bias)

    def input_gradient(self, dy: Tensor) -> Tensor:
        """Return the gradient of `product` in x, [rows, in], for dy [rows, out] of any float dtype."""
        if has_exact_product(dy):
            return integer_products.input_gradient(dy, self._tiles(), self.means, self.in_features)
        return plain_input_gradient(dy, self.qweight, self.scale)

    def _tiles(self) -> Iterator[Tile]:
        return zip(split(self.qweight, CHANNELS), split(self.scale, CHANNELS), strict=True)


def _round_piece(piece: tuple[Tensor, Tensor, Tensor]) -> None:
    """Quantise some channels of a weight: write their integers and scales."""
    weight, q, s = piece
    values, scale = rounded(weight)
    q.copy_(values)
    s.copy_(scale[:, 0])


def plain_product(x: Tensor, qweight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """Compute `Int8Linear.product` in floats: the weight is dequantised, x is rounded to 8 bits row by row."""
    dtype = _plain_dtype(x)
    rounded, s = round_rows(own_float(x))
    weight = qweight * scale.to(dtype)[:, None]
    return F.linear((rounded * s).to(dtype), weight, bias if bias is None else bias.to(dtype)).to(x.dtype)


def plain_input_gradient(dy: Tensor, qweight: Tensor, scale: Tensor) -> Tensor:
    """Compute `Int8Linear.input_gradient` in floats: dy · scale is rounded row by row in groups of channels."""
    dtype = _plain_dtype(dy)
    dx = torch.zeros(len(dy), qweight.shape[1], device=dy.device)
    for scaled, w in zip(split(dy.float() * scale, CHANNELS, 1), split(qweight.to(dtype), CHANNELS), strict=True):
        q, s = round_rows(own_float(scaled))
        dx += (q * s).to(dtype) @ w + (scaled - q * s).sum(1, keepdim=True) * w.mean(0, dtype=torch.float32)
    return dx.to(dy.dtype)


def _plain_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of the plain products."""
    return torch.float32 if x.device.type == "cpu" else x.dtype
