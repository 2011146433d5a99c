"""A frozen linear layer in 4 bits, QLoRA's NormalFloat (https://arxiv.org/abs/2305.14314), multiplied in integers.

    W [out, in] ≈ scale · level     level = round(127 · NF4[code] · m / 255)

    code: 4 bits, one of the 16 numbers of NF4; two in a byte, the first in the upper half
    m: 1 to 255, one for each block of 64 numbers of a row: the largest absolute value of the block, relative to the row
    scale: float32, one for each output channel: the largest absolute value of the row / 127

So a row of `in` numbers takes 4 + 8/64 + 32/in bits for each number. The codes are the same as those of bitsandbytes,
which divides each block by its exact largest absolute value. The double quantisation of bitsandbytes stores these
values in 8 bits as well, relative to their mean; here they are relative to the row, so that the m of a block selects 16
levels, and the codes select among them. The levels are 8-bit integers; see `Nf4Linear` for the products.

A width that is not a multiple of 64 is padded with zeros, which take memory and change no result.

`plain_levels` is the definition of the levels. `decode` computes them in C, or by `decode_by_pairs` in torch.
"""

import math
from collections.abc import Iterator
from functools import cache
from threading import local
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tsugiki.dtypes import ComputeDtype, name_of_dtype
from tsugiki.lowbit import integer_products
from tsugiki.lowbit.few_rows import few_integer_rows
from tsugiki.lowbit.integer_passes import own_float
from tsugiki.lowbit.integer_products import CHANNELS, Tile, in_pieces, mean_row, split
from tsugiki.lowbit.quantized_layer import QuantizedLayer, integers_pay
from tsugiki.lowbit.threads import in_threads
from tsugiki.model.products import matrix_product
from tsugiki.native import address, can_read, native_for

BLOCK = 64
"""Numbers of a row that share one m."""
_PIECE = 1 << 17
"""Bytes of codes that are decoded at once, so that their indices stay in the cache."""
NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
_PAIRS = {torch.int8: torch.int16, torch.bfloat16: torch.int32, torch.float16: torch.int32, torch.float32: torch.int64}
"""The integer dtype with the size of two numbers, so that one look-up copies both."""
_local = local()
"""The buffer of each thread."""


class Nf4Linear(QuantizedLayer):
    """A frozen linear layer in 4 bits, whose weight is decoded for each product, one tile of output channels at a time.

        codes of a tile ──> int8 levels, or floats, in a buffer ──> product ──> the next tile overwrites the buffer

    With integers, the products are those of `integer_products`. Where they are slower, or not exact, the codes are
    decoded into floats of the dtype of the activations. A few rows, as for each new token of a text, are multiplied in
    integers on every processor that has the C function: it reads the codes, which are a quarter of the floats.

    Attributes:
        packed: the codes, uint8 [out, blocks · 32].
        blocks: the m of each block, uint8 [out, blocks].
    """

    packed: nn.Parameter
    blocks: nn.Parameter

    def __init__(self, weight: Tensor, bias: nn.Parameter | None, dtype: torch.dtype) -> None:
        """Quantise `weight`, [out, in] of any float dtype and any strides; it is not kept."""
        super().__init__(weight, bias, dtype)
        with torch.no_grad():
            self.packed, self.blocks, self.scale = (nn.Parameter(t, requires_grad=False) for t in encode(weight))
            means = torch.stack([mean_row(levels) for levels, _ in self._level_tiles()])
        self.means = nn.Parameter(means, requires_grad=False)

    @staticmethod
    def stored_bytes(out_features: int, in_features: int) -> int:
        """Return the size of a layer without its bias, in bytes."""
        blocks, groups = -(-in_features // BLOCK), -(-out_features // CHANNELS)
        return out_features * blocks * (BLOCK // 2 + 1) + 4 * out_features + 4 * groups * blocks * BLOCK

    @property
    def padded_width(self) -> int:
        """The length of a decoded row, a multiple of 64."""
        return self.packed.shape[1] * 2

    def dequantize(self) -> Tensor:
        """Return the exact weight that the quantised values stand for, float32 [out, in]."""
        weight = torch.empty(self.out_features, self.padded_width, device=self.scale.device)
        decode(self.packed, self.blocks, self.scale, weight)
        return weight[:, : self.in_features].contiguous()

    def product_of_few(self, x: Tensor) -> Tensor | None:
        """Return the product for a few rows [..., in] by a C function; None where it does not apply."""
        own: Any = self._parameters  # as in `Int8Linear`
        return few_integer_rows(self._padded(x), own["packed"], own["scale"], self.bias, 1, own["blocks"], _levels())

    def _padded(self, x: Tensor) -> Tensor:
        missing = -self.in_features % BLOCK
        return F.pad(x, (0, missing)) if missing else x

    def product(self, x: Tensor) -> Tensor:
        """Return W x + bias for x [rows, in] of any float dtype, [rows, out] of the same; no gradient is recorded."""
        few = self.product_of_few(x)
        if few is not None:
            return few
        x = self._padded(x)
        if integers_pay(x):
            return integer_products.product(x, self._level_tiles(), self.bias, self.out_features)
        y = x.new_empty(len(x), self.out_features)
        with torch.no_grad():
            for channels, weight in self._tiles(x.dtype):
                bias = None if self.bias is None else self.bias[channels].to(x.dtype)
                y[:, channels] = matrix_product(x, weight, bias)
        return y

    def input_gradient(self, dy: Tensor) -> Tensor:
        """Return the gradient of `product` in x, [rows, in], for dy [rows, out] of any float dtype."""
        if integers_pay(dy):
            dx = integer_products.input_gradient(dy, self._level_tiles(), self.means, self.padded_width)
        else:
            dx = dy.new_zeros(len(dy), self.padded_width)
            for channels, weight in self._tiles(dy.dtype):
                dx.addmm_(dy[:, channels], weight)
        return dx[:, : self.in_features].contiguous()

    def _level_tiles(self) -> Iterator[Tile]:
        for channels, levels in self._tiles(torch.int8):
            yield levels, self.scale[channels]

    def _tiles(self, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
        """Yield the channels of each tile with their levels (int8), or with their weight in a float dtype.

        The tiles are decoded into one buffer, one after the other.
        """
        sizes = [len(part) for part in split(self.scale, CHANNELS)]
        buffer = _buffer(max(sizes) * self.padded_width, dtype, self.scale.device).view(-1, self.padded_width)
        start = 0
        for size in sizes:
            channels = slice(start, start + size)
            self._decode(channels, buffer[:size])
            yield channels, buffer[:size]
            start = channels.stop

    def _decode(self, channels: slice, out: Tensor) -> None:
        """Decode a tile; on the CPU, each thread decodes some of its channels."""
        threads = torch.get_num_threads() if out.device.type == "cpu" else 1
        step = max(1, math.ceil(len(out) / threads))

        def decode_from(start: int) -> None:
            part = out[start : start + step]
            rows = slice(channels.start + start, channels.start + start + len(part))
            decode(self.packed[rows], self.blocks[rows], self.scale[rows] if part.is_floating_point() else None, part)

        in_threads(decode_from, range(0, len(out), step))


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
    """Return the dtype in which a model's 4-bit layers are multiplied on the CPU.

    Returns None if the model has no 4-bit layer, or it is on another device.
    """
    layer = next((module for module in model.modules() if isinstance(module, Nf4Linear)), None)
    if layer is None or layer.scale.device.type != "cpu":
        return None
    if integers_pay(torch.empty(2, 2, dtype=layer.dtype)):
        return "int8"
    return name_of_dtype(layer.dtype)


def encode(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Quantise a weight [out, in] of any float dtype and any strides.

    Returns:
        The codes, uint8 [out, blocks · 32]; the m of each block, uint8 [out, blocks]; and the scales, float32 [out].
        A scale is not finite if an element of its row is not finite.
    """
    out, width = weight.shape
    count = -(-width // BLOCK)
    packed = torch.empty(out, count * BLOCK // 2, dtype=torch.uint8, device=weight.device)
    blocks = torch.empty(out, count, dtype=torch.uint8, device=weight.device)
    scale = torch.empty(out, dtype=torch.float32, device=weight.device)
    in_pieces(_encode_piece, (weight, packed, blocks, scale), _PIECE)
    return packed, blocks, scale


def _encode_piece(weight: Tensor, packed: Tensor, blocks: Tensor, scale: Tensor) -> None:
    """Quantise some rows of a weight: write their codes, m and scales."""
    blocks[:], scale[:] = relative(nearest_codes(weight, packed))


def nearest_codes(weight: Tensor, packed: Tensor) -> Tensor:
    """Write the codes of a weight [rows, width], uint8 [rows, blocks · 32].

    Return the largest absolute value of each block, float32 [rows, blocks].
    """
    shape = len(weight), -(-weight.shape[1] // BLOCK) * BLOCK // 2
    fits = weight.stride(1) == 1 and can_read(packed, torch.uint8, *shape)
    call = native_for("nf4_codes", weight) if fits else None
    if call is None:
        return plain_nearest_codes(weight, packed)
    largest = torch.empty(len(weight), packed.shape[1] * 2 // BLOCK)
    given = (weight.data_ptr(), *weight.shape, weight.stride(0), _bounds().data_ptr())
    call(*given, packed.data_ptr(), largest.data_ptr())
    return largest


def plain_nearest_codes(weight: Tensor, packed: Tensor) -> Tensor:
    """Compute `nearest_codes` in torch."""
    rows, count = len(weight), packed.shape[1] * 2 // BLOCK
    w = F.pad(own_float(weight), (0, count * BLOCK - weight.shape[1])).view(rows, count, BLOCK)
    largest = torch.maximum(w.amax(2), -w.amin(2))
    codes = _nearest(w * (1 / largest.clamp(min=1e-38))[..., None])
    torch.bitwise_or(codes[:, 0::2] << 4, codes[:, 1::2], out=packed)
    return largest


def relative(largest: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest values of blocks, float32 [out, blocks], relative to rows: m, uint8, and scales [out]."""
    of_row = largest.amax(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    m = largest.div(of_row).mul_(255).round_().clamp_(1, 255)
    return m.to(torch.uint8), of_row[:, 0] / 127


def decode(packed: Tensor, blocks: Tensor, scale: Tensor | None, out: Tensor) -> None:
    """Write the levels, as `plain_levels` defines them, or the weights scale · level into `out`.

    Args:
        packed: the codes, uint8 [rows, blocks · 32], contiguous.
        blocks: the m of each block, uint8 [rows, blocks], contiguous.
        scale: the scale of each row, float32 [rows]; None for levels.
        out: [rows, blocks · 64], contiguous: int8 for levels; a float dtype of at most 32 bits for weights.
    """
    rows, count = blocks.shape
    fits = can_read(packed, torch.uint8, rows, count * BLOCK // 2) and can_read(blocks, torch.uint8, rows, count)
    fits = fits and can_read(scale, torch.float32, rows) and can_read(out, out.dtype, rows, count * BLOCK)
    call = native_for("nf4", out) if fits else None
    if call is None:
        decode_by_pairs(packed, blocks, scale, out)
        return
    codes = (packed.data_ptr(), blocks.data_ptr(), *blocks.shape, _levels().data_ptr())
    call(*codes, address(scale), out.data_ptr())


def decode_by_pairs(packed: Tensor, blocks: Tensor, scale: Tensor | None, out: Tensor) -> None:
    """Compute `decode` in torch, by one look-up for each byte of codes."""
    table = _pairs(out.dtype, packed.device)
    rows = max(1, _PIECE // max(1, packed.shape[1]))
    for p, m, levels in zip(*(split(t, rows) for t in (packed, blocks, out)), strict=True):
        index = p.view(*m.shape, BLOCK // 2).to(torch.int32).add_((m.to(torch.int32) << 8)[..., None])
        torch.index_select(table, 0, index.view(-1), out=levels.view(_PAIRS[out.dtype]).view(-1))
    if scale is not None:
        out.mul_(scale[:, None])


def plain_levels(packed: Tensor, blocks: Tensor) -> Tensor:
    """Compute the levels by their definition, float32 [rows, blocks · 64]."""
    codes = torch.stack([packed >> 4, packed & 15], -1).flatten(1).long()
    values = torch.tensor(NF4, device=packed.device)[codes]
    return (127 * values * (blocks / 255).repeat_interleave(BLOCK, 1)).round()


@cache
def _levels() -> Tensor:
    """Return the level of each m and code, int8 [256, 16]."""
    return (127 * torch.tensor(NF4) * (torch.arange(256) / 255)[:, None]).round().to(torch.int8)


@cache
def _pairs(dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the two levels for each m and byte of codes, [256 · 256], viewed as integers of the size of both."""
    packed = torch.arange(256)
    levels = torch.stack([_levels()[:, packed >> 4], _levels()[:, packed & 15]], -1)
    return levels.to(dtype).view(_PAIRS[dtype]).view(-1).to(device)


def _nearest(x: Tensor) -> Tensor:
    """Return the codes of the numbers of NF4 that are nearest to x, float32 of -1 to 1: uint8 [len(x), rest].

    The upper 16 bits of a number determine its code, unless one of the 15 bounds between codes has the same upper bits;
    then the number is compared with the bound. The result is that of `torch.bucketize`, in half of its time.
    """
    lowest, bounds = _codes_by_upper_half(x.device)
    halves = x.view(torch.int16)  # the lower and then the upper half of each number
    upper = halves[..., 1::2].to(torch.int32).view(-1)
    upper += 1 << 15  # so that the least int16 has the index 0
    codes = lowest.index_select(0, upper) + (x.view(-1) > bounds.index_select(0, upper))
    return codes.view(len(x), -1)


@cache
def _bounds() -> Tensor:
    """Return the bounds between the codes: the middles between neighbouring numbers of NF4, float32 [15]."""
    levels = torch.tensor(NF4)
    return (levels[:-1] + levels[1:]) / 2


@cache
def _codes_by_upper_half(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return for each upper half of a float32, as an int16 plus 32,768, the lowest code and the bound above it."""
    middles = _bounds()
    halves = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32) << 16
    ends = torch.stack([halves.view(torch.float32), (halves | 0xFFFF).view(torch.float32)])
    lowest, highest = torch.bucketize(ends.nan_to_num(0), middles).sort(0).values
    bounds = torch.where(highest > lowest, torch.cat([middles, middles[-1:]])[lowest], torch.inf)
    return lowest.to(torch.uint8).to(device), bounds.to(device)
