"""A low-bit frozen linear layer whose weight is decoded for each product, one tile of output channels at a time.

    codes of a tile ──> int8 levels, or floats, in a buffer ──> product ──> the next tile overwrites the buffer

With integers, the products are those of `integer_products`. Where they are slower (on processors with AMX, see
`product_dtype`, and on accelerators) or not exact, the codes are decoded into floats of the dtype of the activations.
"""

import math
from collections.abc import Callable, Iterator
from threading import local
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tsugiki.dtypes import ComputeDtype, name_of_dtype
from tsugiki.lowbit import integer_products
from tsugiki.lowbit.integer_products import CHANNELS, Tile, has_exact_product, mean_row, split
from tsugiki.lowbit.product_dtype import integers_are_faster
from tsugiki.lowbit.quantized_layer import QuantizedLayer
from tsugiki.lowbit.threads import in_threads

_local = local()
"""The buffer of each thread."""


class DecodedLayer(QuantizedLayer):
    """A subclass defines `decode_levels`, `decode_weight` and `padded_width`, and sets `scale` and `means`."""

    @property
    def padded_width(self) -> int:
        """The length of a decoded row: `in_features`, plus zeros that fill up the last block."""
        return self.in_features

    def decode_levels(self, channels: slice, out: Tensor) -> None:
        """Write the integers w of some output channels, where W ≈ scale · w, to `out`, int8 [channels, padded]."""
        raise NotImplementedError

    def decode_weight(self, channels: slice, out: Tensor) -> None:
        """Write the weight of some output channels to `out`, [channels, padded] of a float dtype."""
        raise NotImplementedError

    def dequantize(self) -> Tensor:
        """Return the exact weight that the quantised values stand for, float32 [out, in]."""
        weight = torch.empty(self.out_features, self.padded_width, device=self.scale.device)
        self.decode_weight(slice(0, self.out_features), weight)
        return weight[:, : self.in_features].contiguous()

    def product(self, x: Tensor) -> Tensor:
        """Return W x + bias for x [rows, in] of any float dtype, [rows, out] of the same; no gradient is recorded."""
        x = F.pad(x, (0, self.padded_width - self.in_features)) if self.padded_width > self.in_features else x
        if integers_pay(x):
            return integer_products.product(x, self._level_tiles(), self.bias, self.out_features)
        y = x.new_empty(len(x), self.out_features)
        with torch.no_grad():
            for channels, weight in self._weight_tiles(x.dtype):
                bias = None if self.bias is None else self.bias[channels].to(x.dtype)
                y[:, channels] = F.linear(x, weight, bias)
        return y

    def input_gradient(self, dy: Tensor) -> Tensor:
        """Return the gradient of `product` in x, [rows, in], for dy [rows, out] of any float dtype."""
        if integers_pay(dy):
            dx = integer_products.input_gradient(dy, self._level_tiles(), self.means, self.padded_width)
        else:
            dx = dy.new_zeros(len(dy), self.padded_width)
            for channels, weight in self._weight_tiles(dy.dtype):
                dx.addmm_(dy[:, channels], weight)
        return dx[:, : self.in_features].contiguous()

    def mean_levels(self) -> Tensor:
        """Return the mean row of the integers in each tile, float32 [tiles, padded], for `means`."""
        with torch.no_grad():
            return torch.stack([mean_row(levels) for levels, _ in self._level_tiles()])

    def _level_tiles(self) -> Iterator[Tile]:
        for channels, buffer in self._in_buffer(torch.int8):
            self._decode(self.decode_levels, channels, buffer)
            yield buffer, self.scale[channels]

    def _weight_tiles(self, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
        for channels, buffer in self._in_buffer(dtype):
            self._decode(self.decode_weight, channels, buffer)
            yield channels, buffer

    def _decode(self, decode: Callable[[slice, Tensor], None], channels: slice, buffer: Tensor) -> None:
        """Decode a tile; on the CPU, each thread decodes some of its channels."""
        threads = torch.get_num_threads() if buffer.device.type == "cpu" else 1
        step = max(1, math.ceil(len(buffer) / threads))

        def decode_from(start: int) -> None:
            part = buffer[start : start + step]
            decode(slice(channels.start + start, channels.start + start + len(part)), part)

        in_threads(decode_from, range(0, len(buffer), step))

    def _in_buffer(self, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
        """Yield the channels of each tile, and the part of one buffer that they are decoded into."""
        sizes = [len(part) for part in split(self.scale, CHANNELS)]
        buffer = _buffer(max(sizes) * self.padded_width, dtype, self.scale.device).view(-1, self.padded_width)
        start = 0
        for size in sizes:
            yield slice(start, start + size), buffer[:size]
            start += size


def _buffer(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return memory for `size` elements; on the CPU it is reused, because allocating it takes longer than decoding.

    A thread has one buffer, so no two tiles of a thread may be in use at once.
    """
    if device.type != "cpu" or torch.compiler.is_compiling():
        return torch.empty(size, dtype=dtype, device=device)
    kept: Tensor | None = getattr(_local, "buffer", None)
    if kept is None or len(kept) < size * dtype.itemsize:
        with torch.inference_mode(False):  # the buffer may be used outside of inference mode as well
            kept = _local.buffer = torch.empty(size * dtype.itemsize, dtype=torch.uint8)
    return kept[: size * dtype.itemsize].view(dtype)


def product_dtype(model: nn.Module) -> ComputeDtype | Literal["int8"] | None:
    """Return the dtype in which a model's decoded layers are multiplied on the CPU.

    Returns None if the model has no decoded layer, or it is on another device.
    """
    layer = next((module for module in model.modules() if isinstance(module, DecodedLayer)), None)
    if layer is None or layer.scale.device.type != "cpu":
        return None
    if integers_pay(torch.empty(2, 2, dtype=layer.dtype)):
        return "int8"
    return name_of_dtype(layer.dtype)


def integers_pay(x: Tensor) -> bool:
    """Return whether these rows are multiplied in integers: if that is exact, and was faster in a measurement."""
    return has_exact_product(x) and integers_are_faster(x.dtype)
