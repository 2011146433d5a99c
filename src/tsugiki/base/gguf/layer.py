"""A frozen linear layer in the quantisation of a GGUF file, whose bytes are kept as they are.

    W [out, in], block by block:  W = a · code + b      code: an integer of 4 to 8 bits, one for each number
                                                        a, b: one for each 16 or 32 numbers of a row

How the bytes of a block hold the codes, a and b depends on the type:
https://github.com/ggml-org/llama.cpp/wiki/Tensor-Encoding-Schemes and the structures in ggml-common.h. `_READERS` has
one function for each type that can be multiplied; `decode` computes the same in C. For integer products, W is rounded
to 8 bits, W ≈ scale · level; the scale of a row is its largest absolute value / 127. `dequantize` is exact.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from tsugiki.lowbit.int8 import Int8Linear
from tsugiki.lowbit.integer_products import split
from tsugiki.lowbit.quantized_layer import DecodedLayer, QuantizedLayer
from tsugiki.native import can_read, native_for

_PIECE = 1 << 19
"""Weights that are decoded at once: few enough for the cache, many enough for the overhead of torch's calls."""
_HALF = 2  # bytes of a float16

Codes = tuple[Tensor, Tensor, Tensor | None]
"""The codes of some blocks, uint8 or int8 [blocks, parts, numbers]; a and b of each part, float32 [blocks, parts]."""


class GgufLinear(DecodedLayer):
    """A frozen linear layer in the quantisation of a GGUF file.

    Attributes:
        blocks: the bytes of the file, uint8 [out, bytes of a row].
        kind: the name of the quantisation, such as Q4_K.
    """

    blocks: nn.Parameter

    def __init__(self, blocks: Tensor, kind: str, bias: nn.Parameter | None, dtype: torch.dtype) -> None:
        """Keep the bytes of a tensor in a file.

        Args:
            blocks: uint8 [out, bytes of a row].
            kind: the name of the quantisation, a key of `BLOCKS`.
            bias: the layer's bias, [out], or None.
            dtype: the dtype of `weight`.
        """
        numbers, size = BLOCKS[kind]
        out, row = blocks.shape
        super().__init__(torch.empty(out, row // size * numbers, device="meta"), bias, dtype)
        self.kind = kind
        self.blocks = nn.Parameter(blocks, requires_grad=False)
        scale = self._largest_of_rows().clamp_(min=torch.finfo(torch.float32).tiny) / 127
        self.scale = nn.Parameter(scale, requires_grad=False)
        self.means = nn.Parameter(self.mean_levels(), requires_grad=False)

    def requantize(self, weight: Tensor) -> QuantizedLayer:
        """Return an int8 layer with `weight` [out, in]; the bias is shared. GGUF's formats are not written."""
        return Int8Linear(weight, self.bias, self.dtype)

    def decode_levels(self, channels: slice, out: Tensor) -> None:
        """Write the levels of some output channels to `out`, int8 [channels, in]."""
        decode(self.blocks[channels], self.kind, 1 / self.scale[channels], out)

    def decode_weight(self, channels: slice, out: Tensor) -> None:
        """Write the weight of some output channels to `out`, [channels, in] of a float dtype."""
        decode(self.blocks[channels], self.kind, None, out)

    def _largest_of_rows(self) -> Tensor:
        """Return the largest absolute value of each row of the weight, float32 [out]."""
        largest = torch.empty(self.out_features, device=self.blocks.device)
        rows = _rows_of_piece(self.in_features)
        for part, to in zip(split(self.blocks, rows), split(largest, rows), strict=True):
            weight = torch.empty(len(part), self.in_features, device=part.device)
            decode(part, self.kind, None, weight)
            torch.amax(weight.abs_(), 1, out=to)
        return largest

    def extra_repr(self) -> str:
        """Return what `nn.Linear` shows, and the quantisation."""
        return f"{super().extra_repr()}, {self.kind}"


def decode(blocks: Tensor, kind: str, factor: Tensor | None, out: Tensor) -> None:
    """Write the weights of some rows, times the factor of each row, into `out`; into int8, they are rounded.

    Args:
        blocks: the bytes of the rows, uint8 [rows, bytes of a row], contiguous.
        kind: a key of `BLOCKS`.
        factor: float32 [rows]; None: 1.
        out: [rows, in], contiguous: int8, or a float dtype.
    """
    numbers, size = BLOCKS[kind]
    rows, count, number = len(blocks), blocks.shape[1] // size, list(BLOCKS).index(kind)
    fits = can_read(blocks, torch.uint8, rows, count * size) and can_read(factor, torch.float32, rows)
    call = native_for("gguf", out) if fits and can_read(out, out.dtype, rows, count * numbers) else None
    if call is None:
        plain_decode(blocks, kind, factor, out)
        return
    given = None if factor is None else factor.data_ptr()
    call(blocks.data_ptr(), rows, count, number, given, out.data_ptr())


def plain_decode(blocks: Tensor, kind: str, factor: Tensor | None, out: Tensor) -> None:
    """Compute `decode` in torch."""
    rows = _rows_of_piece(out.shape[1])
    parts = split(blocks, rows)
    factors = [None] * len(parts) if factor is None else split(factor, rows)
    for part, of_part, to in zip(parts, factors, split(out, rows), strict=True):
        weights = _weights(part, kind, of_part)
        to.copy_(weights.round_() if to.dtype == torch.int8 else weights)


def _weights(rows: Tensor, kind: str, factor: Tensor | None) -> Tensor:
    """Return the weights of some rows, times a factor [rows] if it is given: float32 [rows, in]."""
    numbers, size = BLOCKS[kind]
    codes, a, b = _READERS[kind](rows.view(-1, size))
    if factor is not None:
        of_block = factor.repeat_interleave(rows.shape[1] // size)[:, None]
        a, b = a * of_block, None if b is None else b * of_block
    weights = codes.float().mul_(a[..., None])
    if b is not None:
        weights.add_(b[..., None])
    return weights.view(len(rows), rows.shape[1] // size * numbers)


def _rows_of_piece(width: int) -> int:
    return max(1, _PIECE // max(1, width))


def _halves(blocks: Tensor, start: int) -> Tensor:
    """Return the float16 number at byte `start` of each block, float32 [blocks, 1]."""
    return blocks[:, start : start + _HALF].contiguous().view(torch.float16).float()


def _nibbles(packed: Tensor) -> Tensor:
    """Return the lower halves of bytes [blocks, parts, n], then the upper ones: uint8 [blocks, parts, 2, n]."""
    return torch.stack([packed & 15, packed >> 4], 2)


def _bits(packed: Tensor, width: int, count: int) -> Tensor:
    """Split bytes [blocks, parts, n] into groups of `width` bits, lowest first: uint8 [blocks, parts, count, n]."""
    mask = (1 << width) - 1
    return torch.stack([(packed >> width * i) & mask for i in range(count)], 2)


def _q4_0(blocks: Tensor) -> Codes:
    a = _halves(blocks, 0)
    return _nibbles(blocks[:, None, 2:]).view(-1, 1, 32), a, -8 * a


def _q4_1(blocks: Tensor) -> Codes:
    return _nibbles(blocks[:, None, 4:]).view(-1, 1, 32), _halves(blocks, 0), _halves(blocks, 2)


def _q5_0(blocks: Tensor) -> Codes:
    a = _halves(blocks, 0)
    return _five_bits(blocks[:, 2:6], blocks[:, 6:]), a, -16 * a


def _q5_1(blocks: Tensor) -> Codes:
    return _five_bits(blocks[:, 4:8], blocks[:, 8:]), _halves(blocks, 0), _halves(blocks, 2)


def _five_bits(upper: Tensor, lower: Tensor) -> Tensor:
    """Return codes of 5 bits: bit i of the four bytes `upper` belongs to number i of the block."""
    fifth = _bits(upper[:, :, None], 1, 8).view(-1, 1, 32)
    return _nibbles(lower[:, None]).view(-1, 1, 32) + (fifth << 4)


def _q8_0(blocks: Tensor) -> Codes:
    return blocks[:, None, 2:].view(torch.int8), _halves(blocks, 0), None


def _q4_k(blocks: Tensor) -> Codes:
    a, b = _scales_of_six_bits(blocks)
    return _nibbles(blocks[:, 16:].view(-1, 4, 32)).view(-1, 8, 32), a, b


def _q5_k(blocks: Tensor) -> Codes:
    a, b = _scales_of_six_bits(blocks)
    fifth = _bits(blocks[:, None, 16:48], 1, 8).view(-1, 8, 32)
    return _nibbles(blocks[:, 48:].view(-1, 4, 32)).view(-1, 8, 32) + (fifth << 4), a, b


def _scales_of_six_bits(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Return a and b of the eight parts of each block of Q4_K or Q5_K, float32 [blocks, 8].

    Twelve bytes hold eight scales and eight minima of 6 bits: those of parts 0 to 3 in the lower bits of bytes 0 to 3
    and 4 to 7, those of parts 4 to 7 with their lower 4 bits in bytes 8 to 11 and their upper 2 in bytes 0 to 7.
    """
    first, second, rest = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = torch.cat([first & 63, (rest & 15) | (first >> 6 << 4)], 1)
    minima = torch.cat([second & 63, (rest >> 4) | (second >> 6 << 4)], 1)
    return _halves(blocks, 0) * scales, -_halves(blocks, 2) * minima


def _q6_k(blocks: Tensor) -> Codes:
    lower = _nibbles(blocks[:, :128].view(-1, 2, 64)).view(-1, 8, 32)
    upper = _bits(blocks[:, 128:192].view(-1, 2, 32), 2, 4).view(-1, 8, 32)
    a = _halves(blocks, 208) * blocks[:, 192:208].view(torch.int8)
    return (lower + (upper << 4)).view(-1, 16, 16), a, -32 * a


_READERS: Mapping[str, Callable[[Tensor], Codes]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}
BLOCKS: Mapping[str, tuple[int, int]] = {
    **{"Q4_0": (32, 18), "Q4_1": (32, 20), "Q5_0": (32, 22), "Q5_1": (32, 24), "Q8_0": (32, 34)},
    **{"Q4_K": (256, 144), "Q5_K": (256, 176), "Q6_K": (256, 210)},
}
"""Type -> the number of weights in a block, and the number of bytes; native.c knows the types by their order."""
