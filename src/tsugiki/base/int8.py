"""A frozen linear layer that multiplies 8-bit integers, forward and backward, with one copy of its weight.

    W [out, in] ≈ scale · codes      codes: int8, -127 to 127; scale: float32, one for each output channel
    y  = x Wᵀ   ≈ s · (q codesᵀ) · scale + bias        q, s: x rounded to 8 bits row by row, x ≈ s · q
    dx = dy W   ≈ s · (q codes)                        q, s: the same of dy · scale

The sum in dx runs over the output channels, so their scales go into dy before it is rounded; that is why the codes
need not be kept a second time for the way back. The products q codes are exact in int32: what is lost is lost by
rounding. Rounding rows and channels on their own is the vector-wise quantisation of LLM.int8()
(https://arxiv.org/abs/2208.07339), without its separate columns for outliers.

A softmax's gradient is near -1 for the target and tiny for thousands of others, which all round to nothing although
their sum is 1, and a vocabulary's rows have much in common: dx would be wrong by a multiple of it. So what a row of dy
loses in the sum, Σ (dy · scale - s · q), is given back times the mean of the codes.

`plain_product` and `plain_input_gradient` say the same in floats, for devices without the integer product.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# Tiles of the int32 result: large enough for the product to be fast, small enough for what follows to find it in cache.
_ROWS = 256
_CHANNELS = 3072


class Int8Linear(nn.Module):
    """Stands for a frozen `nn.Linear` or transformers' `Conv1D`, whose weight is then gone.

    Nothing in it trains but `bias`, where somebody sets one that requires a gradient.

    Attributes:
        codes: int8, [out, in].
        scale: float32, [out].
        means: float32, [groups, in], the mean of the codes of each group of channels that dy is rounded in.
        bias: the layer's own, [out], or None.
        dtype: in which `weight` is given.
    """

    codes: Tensor
    scale: Tensor
    means: Tensor

    def __init__(self, weight: Tensor, bias: nn.Parameter | None, dtype: torch.dtype) -> None:
        """`weight` is [out, in], of any float dtype and any strides; it is not kept."""
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.dtype = dtype
        codes = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
        scale = torch.empty(len(weight), dtype=torch.float32, device=weight.device)
        with torch.no_grad():
            for channels, c, s in zip(*(_split(t, _CHANNELS) for t in (weight, codes, scale)), strict=True):
                rounded, s[:, None] = _round_rows(_own_float(channels))
                c.copy_(rounded)
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale)
        self.register_buffer("means", torch.stack([c.float().mean(0) for c in _split(codes, _CHANNELS)]))
        self.bias = bias

    @classmethod
    def from_layer(cls, layer: nn.Module, dtype: torch.dtype) -> "Int8Linear":
        """The same layer in 8 bits, its bias shared; `layer` is a linear layer in the sense of `is_linear`."""
        weight: Tensor = layer.weight  # type: ignore[assignment]
        return cls(weight if isinstance(layer, nn.Linear) else weight.T, layer.bias, dtype)  # type: ignore[arg-type]

    @property
    def weight(self) -> Tensor:
        """The weight that the codes mean, [out, in] for a `Conv1D` too; made anew at each call."""
        return self.whole().to(self.dtype)

    def whole(self) -> Tensor:
        """The same in float32: what the codes mean, to the last bit of it."""
        return self.codes * self.scale[:, None]

    def rounded(self, weight: Tensor) -> "Int8Linear":
        """This layer with another weight, [out, in], rounded to 8 bits; its bias is shared."""
        return Int8Linear(weight, self.bias, self.dtype)

    def product(self, x: Tensor) -> Tensor:
        """W x + bias for rows: x [rows, in] of any float dtype -> [rows, out] of the same. Records no gradient."""
        return (_product if _exact_integers_on(x) else plain_product)(x, self.codes, self.scale, self.bias)

    def input_gradient(self, dy: Tensor) -> Tensor:
        """The gradient of `product` in x: dy [rows, out] of any float dtype -> [rows, in] of the same."""
        if _exact_integers_on(dy):
            return _input_gradient(dy, self.codes, self.scale, self.means)
        return plain_input_gradient(dy, self.codes, self.scale)

    def forward(self, x: Tensor) -> Tensor:
        """W x + bias, differentiable in x and bias; x is [..., in]. No activation is kept for the way back."""
        y: Tensor = _Forward.apply(x.reshape(-1, self.in_features), self.bias, self)  # type: ignore[no-untyped-call]
        return y.view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """As `nn.Linear` shows itself."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Int8Linear":
        """`.to(dtype)` says in which dtype to work, not how precisely to keep the scales."""
        scale, means = self.scale, self.means
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.scale, self.means = scale.to(self.codes.device), means.to(self.codes.device)
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device=scale.device)).dtype
        return self


def is_linear(layer: nn.Module) -> bool:
    """Whether `Int8Linear` can stand for this layer: `nn.Linear`, or `Conv1D` (known by name, to need torch alone)."""
    return isinstance(layer, nn.Linear) or (type(layer).__name__ == "Conv1D" and hasattr(layer, "nf"))


@cache
def exact_integers() -> bool:
    """Whether this processor multiplies int8 exactly.

    Without VNNI (`avx512_vnni` or AMX) oneDNN adds neighbouring products in 16 bits, where they saturate in silence.
    """
    largest = torch.full((64, 256), 127, dtype=torch.int8)
    return bool((torch._int_mm(largest, largest.T) == 256 * 127 * 127).all())


def plain_product(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """What `Int8Linear.product` computes, in float32: the weight made whole, x rounded to 8 bits row by row."""
    rounded, s = _round_rows(_own_float(x))
    return F.linear(rounded * s, codes * scale[:, None], bias if bias is None else bias.float()).to(x.dtype)


def plain_input_gradient(dy: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """What `Int8Linear.input_gradient` computes, in float32: dy · scale rounded row by row in groups of channels."""
    dx = torch.zeros(len(dy), codes.shape[1], device=dy.device)
    for part, c in zip(_split(dy.float() * scale, _CHANNELS, 1), _split(codes.float(), _CHANNELS), strict=True):
        q, s = _round_rows(_own_float(part))
        dx += q * s @ c + (part - q * s).sum(1, keepdim=True) * c.mean(0)
    return dx.to(dy.dtype)


class _Forward(torch.autograd.Function):
    """W x + b; a frozen weight wants no gradient, so nothing is saved."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, layer: Int8Linear) -> Tensor:
        ctx.layer = layer
        return layer.product(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        for_x, for_bias, _ = ctx.needs_input_grad
        return ctx.layer.input_gradient(dy) if for_x else None, dy.sum(0) if for_bias else None, None


@torch.no_grad()
def _product(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """`plain_product` with the product in integers, tile by tile."""
    y = x.new_empty(len(x), len(codes))
    channels, scales = _split(codes, _CHANNELS), _split(scale, _CHANNELS)
    biases = [None] * len(channels) if bias is None else _split(bias.float(), _CHANNELS)
    for x_rows, y_rows in zip(_split(x, _ROWS), _split(y, _ROWS), strict=True):
        q, s = _round_rows(_own_float(x_rows))
        for c, k, b, tile in zip(channels, scales, biases, _split(y_rows, _CHANNELS, 1), strict=True):
            result = _times(q, c.T).mul_(s)
            tile.copy_(result.mul_(k) if b is None else torch.addcmul(b, result, k, out=result))
    return y


@torch.no_grad()
def _input_gradient(dy: Tensor, codes: Tensor, scale: Tensor, means: Tensor) -> Tensor:
    """`plain_input_gradient` with the products in integers."""
    dx = dy.new_empty(len(dy), codes.shape[1])
    channels, scales = _split(codes, _CHANNELS), _split(scale, _CHANNELS)
    for dy_rows, dx_rows in zip(_split(dy, _ROWS), _split(dx, _ROWS), strict=True):
        total: Tensor | None = None
        for c, k, mean, part in zip(channels, scales, means, _split(dy_rows, _CHANNELS, 1), strict=True):
            scaled = _own_float(part).mul_(k)
            lost = scaled.sum(1, keepdim=True)
            q, s = _round_rows(scaled)
            lost.addcmul_(s, scaled.sum(1, keepdim=True), value=-1)
            result = _times(q, c).mul_(s).addmm_(lost, mean[None])
            total = result if total is None else total.add_(result)
        dx_rows.copy_(total)  # type: ignore[arg-type]
    return dx


def _round_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes q int8 [rows, n] and scales s float32 [rows, 1], x ≈ s · q with the largest of a row at ±127.

    x is float32 and is written over with q. Not finite in, not finite out: then s is not.
    """
    largest = torch.maximum(x.amax(1, keepdim=True), -x.amin(1, keepdim=True))
    s = largest.div_(127).clamp_(min=torch.finfo(torch.float32).tiny)
    return x.div_(s).round_().to(torch.int8), s


def _times(a: Tensor, b: Tensor) -> Tensor:
    """The product of two int8 matrices, as float32 in the memory of its int32 result."""
    product = torch._int_mm(a, b)
    return product.view(torch.float32).copy_(product)


def _own_float(x: Tensor) -> Tensor:
    """A contiguous float32 copy, to be written over."""
    return x.to(torch.float32, copy=True, memory_format=torch.contiguous_format)


def _split(t: Tensor, most: int, dim: int = 0) -> tuple[Tensor, ...]:
    """Pieces of at most `most` rows (or columns), as even as can be."""
    return t.chunk(max(1, math.ceil(t.shape[dim] / most)), dim)


def _exact_integers_on(x: Tensor) -> bool:
    """Whether rows like these go through the integer product (of single numbers torch's reads past its matrices)."""
    return x.device.type == "cpu" and x.shape[1] > 1 and not torch.compiler.is_compiling() and exact_integers()
