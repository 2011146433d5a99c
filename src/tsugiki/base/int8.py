"""A frozen linear layer that multiplies 8-bit integers in the forward and backward pass, with one copy of its weight.

    W [out, in] ≈ scale · qweight    qweight: int8, -127 to 127; scale: float32, one for each output channel
    y  = x Wᵀ   ≈ s · (q qweightᵀ) · scale + bias      q, s: x rounded to 8 bits row by row, x ≈ s · q
    dx = dy W   ≈ s · (q qweight)                      q, s: dy · scale rounded in the same way

The sum in dx runs over the output channels, so dy is multiplied by their scales before it is rounded; that is why the
backward pass needs no second copy of the quantised weight. The products with qweight are exact in int32: only rounding
loses precision. Rounding each row and each channel by its own scale is the vector-wise quantisation of LLM.int8()
(https://arxiv.org/abs/2208.07339), without that paper's separate columns for outliers.

The gradient of a softmax is near -1 for the target and tiny for thousands of other words. These all round to zero
although their sum is 1, and since the rows of the weight are similar, dx would be wrong by a multiple of their mean. So
what a row of dy loses in total by rounding, Σ (dy · scale - s · q), is added back times the mean row of qweight.

`plain_product` and `plain_input_gradient` compute the same in floats, for devices without the integer product: in
float32 on a processor, in the dtype of the activations on an accelerator, which is slow in float32.

The quantised values are parameters that do not train, and no buffers, so that FSDP shards them and DDP does not send
them to all processes in every forward pass.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# Tiles of the int32 result: large enough for a fast product, small enough to stay in the cache for the next operations.
_ROWS = 256
_CHANNELS = 3072


class Int8Linear(nn.Module):
    """Replaces a frozen `nn.Linear` or transformers' `Conv1D`, whose float weight is dropped.

    It implements `lora.frozen_layer.QuantizedLinear`. Only `bias` can train.

    Attributes:
        qweight: the quantised weight, int8 [out, in].
        scale: of each output channel, float32 [out].
        means: the mean row of `qweight` in each group of channels that dy is rounded in, float32 [groups, in].
        bias: the bias of the replaced layer, [out], or None.
        dtype: the dtype of `weight`.
    """

    def __init__(self, weight: Tensor, bias: nn.Parameter | None, dtype: torch.dtype) -> None:
        """Quantise `weight`, [out, in] of any float dtype and any strides; it is not kept."""
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.dtype = dtype
        qweight = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
        scale = torch.empty(len(weight), dtype=torch.float32, device=weight.device)
        with torch.no_grad():
            for channels, q, s in zip(*(_split(t, _CHANNELS) for t in (weight, qweight, scale)), strict=True):
                rounded, s[:, None] = _round_rows(_own_float(channels))
                q.copy_(rounded)
        means = torch.stack([q.float().mean(0) for q in _split(qweight, _CHANNELS)])
        self.qweight, self.scale, self.means = (nn.Parameter(t, requires_grad=False) for t in (qweight, scale, means))
        self.bias = bias

    @classmethod
    def from_layer(cls, layer: nn.Module, dtype: torch.dtype) -> "Int8Linear":
        """Return `layer`, an `nn.Linear` or a `Conv1D`, in 8 bits; the bias is shared."""
        weight: Tensor = layer.weight  # type: ignore[assignment]
        return cls(weight if isinstance(layer, nn.Linear) else weight.T, layer.bias, dtype)  # type: ignore[arg-type]

    @property
    def weight(self) -> Tensor:
        """The dequantised weight in `dtype`, [out, in] for a `Conv1D` too; computed at each access."""
        return self.dequantize().to(self.dtype)

    def dequantize(self) -> Tensor:
        """Return the exact weight that the quantised values stand for, float32 [out, in]."""
        return self.qweight * self.scale[:, None]

    def requantize(self, weight: Tensor) -> "Int8Linear":
        """Return this layer with another weight [out, in], quantised; the bias is shared."""
        return Int8Linear(weight, self.bias, self.dtype)

    def product(self, x: Tensor) -> Tensor:
        """Return W x + bias for x [rows, in] of any float dtype, [rows, out] of the same; no gradient is recorded."""
        return (_product if _has_exact_product(x) else plain_product)(x, self.qweight, self.scale, self.bias)

    def input_gradient(self, dy: Tensor) -> Tensor:
        """Return the gradient of `product` in x, [rows, in], for dy [rows, out] of any float dtype."""
        if _has_exact_product(dy):
            return _input_gradient(dy, self.qweight, self.scale, self.means)
        return plain_input_gradient(dy, self.qweight, self.scale)

    def forward(self, x: Tensor) -> Tensor:
        """Return W x + bias for x [..., in], differentiable in x and bias; no activation is kept for backward."""
        y: Tensor = _Forward.apply(x.reshape(-1, self.in_features), self.bias, self)  # type: ignore[no-untyped-call]
        return y.view(*x.shape[:-1], self.out_features)

    def codes(self) -> tuple[nn.Parameter, ...]:
        """Return the parameters that stand for the weight, which never train and are not cast: all but the bias."""
        return self.qweight, self.scale, self.means

    def extra_repr(self) -> str:
        """Return what `nn.Linear` shows in its `repr`."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Int8Linear":
        """Apply `fn` to the tensors, but keep the scales in float32: `.to(dtype)` changes the dtype of `weight`."""
        before = {name: getattr(self, name).detach() for name in ("scale", "means")}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, exact in before.items():
            if getattr(self, name).dtype != exact.dtype:
                setattr(self, name, nn.Parameter(exact.to(self.qweight.device), requires_grad=False))
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device=before["scale"].device)).dtype
        return self


@cache
def exact_integers() -> bool:
    """Whether this processor multiplies int8 matrices exactly.

    Without VNNI (`avx512_vnni` or AMX), oneDNN adds neighbouring products in 16 bits, which saturate without an error.
    """
    largest = torch.full((64, 256), 127, dtype=torch.int8)
    return bool((torch._int_mm(largest, largest.T) == 256 * 127 * 127).all())


def plain_product(x: Tensor, qweight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """Compute `Int8Linear.product` in floats: the weight is dequantised, x is rounded to 8 bits row by row."""
    dtype = _plain_dtype(x)
    rounded, s = _round_rows(_own_float(x))
    weight = qweight * scale.to(dtype)[:, None]
    return F.linear((rounded * s).to(dtype), weight, bias if bias is None else bias.to(dtype)).to(x.dtype)


def plain_input_gradient(dy: Tensor, qweight: Tensor, scale: Tensor) -> Tensor:
    """Compute `Int8Linear.input_gradient` in floats: dy · scale is rounded row by row in groups of channels."""
    dtype = _plain_dtype(dy)
    dx = torch.zeros(len(dy), qweight.shape[1], device=dy.device)
    for scaled, w in zip(_split(dy.float() * scale, _CHANNELS, 1), _split(qweight.to(dtype), _CHANNELS), strict=True):
        q, s = _round_rows(_own_float(scaled))
        dx += (q * s).to(dtype) @ w + (scaled - q * s).sum(1, keepdim=True) * w.mean(0, dtype=torch.float32)
    return dx.to(dy.dtype)


def _plain_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of the plain products."""
    return torch.float32 if x.device.type == "cpu" else x.dtype


class _Forward(torch.autograd.Function):
    """W x + b; the weight is frozen, so the backward pass needs no saved tensor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, layer: Int8Linear) -> Tensor:
        ctx.layer = layer
        return layer.product(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        needs_x, needs_bias, _ = ctx.needs_input_grad
        return ctx.layer.input_gradient(dy) if needs_x else None, dy.sum(0) if needs_bias else None, None


@torch.no_grad()
def _product(x: Tensor, qweight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """Compute `plain_product` with the product in integers, tile by tile."""
    y = x.new_empty(len(x), len(qweight))
    channels, scales = _split(qweight, _CHANNELS), _split(scale, _CHANNELS)
    biases = [None] * len(channels) if bias is None else _split(bias.float(), _CHANNELS)
    for x_rows, y_rows in zip(_split(x, _ROWS), _split(y, _ROWS), strict=True):
        q, s = _round_rows(_own_float(x_rows))
        for w, k, b, tile in zip(channels, scales, biases, _split(y_rows, _CHANNELS, 1), strict=True):
            result = _times(q, w.T).mul_(s)
            tile.copy_(result.mul_(k) if b is None else torch.addcmul(b, result, k, out=result))
    return y


@torch.no_grad()
def _input_gradient(dy: Tensor, qweight: Tensor, scale: Tensor, means: Tensor) -> Tensor:
    """Compute `plain_input_gradient` with the products in integers."""
    dx = dy.new_empty(len(dy), qweight.shape[1])
    channels, scales = _split(qweight, _CHANNELS), _split(scale, _CHANNELS)
    for dy_rows, dx_rows in zip(_split(dy, _ROWS), _split(dx, _ROWS), strict=True):
        total: Tensor | None = None
        for w, k, mean, tile in zip(channels, scales, means, _split(dy_rows, _CHANNELS, 1), strict=True):
            scaled = _own_float(tile).mul_(k)
            lost = scaled.sum(1, keepdim=True)
            q, s = _round_rows(scaled)
            lost.addcmul_(s, scaled.sum(1, keepdim=True), value=-1)
            result = _times(q, w).mul_(s).addmm_(lost, mean[None])
            total = result if total is None else total.add_(result)
        dx_rows.copy_(total)  # type: ignore[arg-type]
    return dx


def _round_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise the rows of x, so that x ≈ s · q with the largest absolute value of each row at ±127.

    Values that are not finite make s not finite, so that the result is not finite either.

    Args:
        x: float32 [rows, n]; overwritten with the values of q.

    Returns:
        q, int8 [rows, n], and s, float32 [rows, 1].
    """
    largest = torch.maximum(x.amax(1, keepdim=True), -x.amin(1, keepdim=True))
    s = largest.div_(127).clamp_(min=torch.finfo(torch.float32).tiny)
    return x.div_(s).round_().to(torch.int8), s


def _times(a: Tensor, b: Tensor) -> Tensor:
    """Return the product of two int8 matrices as float32, in the memory of its int32 result."""
    product = torch._int_mm(a, b)
    return product.view(torch.float32).copy_(product)


def _own_float(x: Tensor) -> Tensor:
    """Return a contiguous float32 copy, which may be overwritten."""
    return x.to(torch.float32, copy=True, memory_format=torch.contiguous_format)


def _split(t: Tensor, most: int, dim: int = 0) -> tuple[Tensor, ...]:
    """Split into pieces of at most `most` rows (or columns), as even as possible."""
    return t.chunk(max(1, math.ceil(t.shape[dim] / most)), dim)


def _has_exact_product(x: Tensor) -> bool:
    """Whether the integer product can be used for these rows (for rows of one element torch's reads out of bounds)."""
    return x.device.type == "cpu" and x.shape[1] > 1 and not torch.compiler.is_compiling() and exact_integers()
