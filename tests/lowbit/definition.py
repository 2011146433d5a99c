"""The products of a layer of few bits by their definition in floats."""

import torch
from torch import Tensor
from torch.nn import functional as F

from tsugiki.lowbit import Int8Linear, QuantizedLayer, plain_input_gradient
from tsugiki.lowbit.int8 import plain_product
from tsugiki.lowbit.nf4 import plain_levels

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def error(a: Tensor, b: Tensor) -> float:
    """Return the norm of the difference, relative to the norm of b."""
    return float((a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-300))


def plain_products(layer: QuantizedLayer, x: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    """Return product and input gradient by the definition."""
    if isinstance(layer, Int8Linear):
        y = plain_product(x, layer.qweight, layer.scale, layer.bias, layer.blocks)
        return y, plain_input_gradient(dy, layer.qweight, layer.scale, layer.blocks)
    levels = plain_levels(layer.packed, layer.blocks).to(torch.int8)
    padded = F.pad(x, (0, layer.padded_width - layer.in_features))
    dx = plain_input_gradient(dy, levels, layer.scale)
    return plain_product(padded, levels, layer.scale, layer.bias), dx[:, : layer.in_features]


def assert_is_plain(layer: QuantizedLayer, x: Tensor, dy: Tensor) -> None:
    """Compare both products with the definition: to rounding, finite, of the dtype and shape."""
    found = layer.product(x), layer.input_gradient(dy)
    for fast, plain in zip(found, plain_products(layer, x, dy), strict=True):
        assert fast.dtype == plain.dtype == x.dtype
        assert fast.shape == plain.shape
        assert fast.isfinite().all()
        assert error(fast, plain) <= torch.finfo(x.dtype).eps / 4 + 1e-6
