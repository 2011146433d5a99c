"""The 4-bit layer: its codes compared with bitsandbytes, its products with the definition in floats."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tsugiki.lowbit import (
    Nf4Linear,
    decode,
    decode_by_pairs,
    encode,
    integer_products,
    nf4,
    plain_input_gradient,
)
from tsugiki.lowbit.int8 import plain_product
from tsugiki.lowbit.nf4 import plain_levels

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def _weight(out: int = 40, into: int = 128) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(out, into, generator=generator) * torch.logspace(-2, 1, out)[:, None]


def _layer(out: int = 40, into: int = 128, bias: bool = True) -> Nf4Linear:
    return Nf4Linear(_weight(out, into), nn.Parameter(torch.randn(out)) if bias else None, torch.bfloat16)


def _plain(layer: Nf4Linear, x: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    """Return product and input gradient by the definition of the levels and of int8 products, all in floats."""
    levels = plain_levels(layer.packed, layer.blocks).to(torch.int8)
    padded = F.pad(x, (0, layer.padded_width - layer.in_features))
    dx = plain_input_gradient(dy, levels, layer.scale)
    return plain_product(padded, levels, layer.scale, layer.bias), dx[:, : layer.in_features]


def _error(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-300))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(33, 64), (16, 192), (256, 1024)])
def test_the_codes_are_those_of_bitsandbytes(dtype: torch.dtype, shape: tuple[int, int]):
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = _weight(*shape).to(dtype)
    weight[3, :64] = 0
    weight[5, 7] = 30
    codes, state = functional.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    packed, blocks, scale = encode(weight)
    assert torch.equal(packed, codes.view(packed.shape))
    # The largest values of blocks are stored relative to their rows, with an error of half a step of 1/255.
    stored = blocks * scale[:, None] * 127 / 255
    exact = state.absmax.view(blocks.shape)
    assert ((stored - exact).abs() <= exact.amax(1, keepdim=True) / 255 * 1.001)[exact > 0].all()


def test_bounds_between_codes_are_decided_as_by_bucketize():
    values = torch.tensor(nf4.NF4)
    middles = (values[1:] + values[:-1]) / 2
    next_to = [middles, middles.nextafter(torch.tensor(2.0)), middles.nextafter(torch.tensor(-2.0)), values, -values]
    x = torch.cat([*next_to, torch.tensor([0.0, -0.0, 1e-42, -1e-42]), torch.linspace(-1, 1, 9001)])
    x = x[: len(x) // 2 * 2].view(2, -1)
    assert torch.equal(nf4._nearest(x).long(), torch.bucketize(x, middles))


@pytest.mark.parametrize("decoding", [decode, decode_by_pairs])
@pytest.mark.parametrize("shape", [(37, 4), (1, 1), (0, 3), (300, 1)])
def test_decoding_equals_the_definition(
    decoding: Callable[..., None], shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(nf4, "_PIECE", 512)  # several pieces
    packed = torch.randint(0, 256, (shape[0], shape[1] * 32), dtype=torch.uint8)
    blocks = torch.randint(0, 256, shape, dtype=torch.uint8)
    scale = torch.rand(shape[0]) * 1e-3
    expected = plain_levels(packed, blocks)
    levels = torch.empty(expected.shape, dtype=torch.int8)
    decoding(packed, blocks, None, levels)
    assert torch.equal(levels.float(), expected)
    for dtype in DTYPES:
        weight = torch.empty(expected.shape, dtype=dtype)
        decoding(packed, blocks, scale, weight)
        assert torch.equal(weight, (expected * scale[:, None]).to(dtype))


def test_every_level_is_the_product_of_the_code_and_the_block():
    blocks = torch.arange(1, 256, dtype=torch.uint8)[:, None]
    codes = torch.arange(16, dtype=torch.uint8)
    packed = (codes << 4 | codes.flip(0)).repeat(255, 2)
    expected = torch.tensor(nf4.NF4)[codes.long()] * blocks / 255 * 127
    assert (plain_levels(packed, blocks)[:, 0:32:2] - expected).abs().max() <= 0.5001


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("out", "into", "rows", "bias"), [(40, 128, 17, True), (64, 100, 1, False), (5, 7, 17, True), (2, 65, 0, False)]
)
@pytest.mark.usefixtures("integers")
def test_both_products_equal_the_plain_ones(dtype: torch.dtype, bias: bool, out: int, into: int, rows: int):
    torch.manual_seed(1)
    layer = _layer(out, into, bias)
    x, dy = torch.randn(rows, into).to(dtype), torch.randn(rows, out).to(dtype)
    for fast, plain in zip((layer.product(x), layer.input_gradient(dy)), _plain(layer, x, dy), strict=True):
        assert fast.dtype == plain.dtype == dtype
        assert fast.shape == plain.shape
        assert fast.isfinite().all()
        assert _error(fast, plain) <= torch.finfo(dtype).eps / 4 + 1e-6


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("into", [128, 100])
def test_products_in_floats_equal_those_with_the_dequantised_weight(
    dtype: torch.dtype, into: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(nf4, "integers_pay", lambda x: False)
    monkeypatch.setattr(nf4, "CHANNELS", 16)
    torch.manual_seed(1)
    layer = _layer(40, into)
    x, dy = torch.randn(6, into).to(dtype), torch.randn(6, 40).to(dtype)
    weight = layer.dequantize()
    expected = F.linear(x.float(), weight, layer.bias), dy.float() @ weight
    for found, plain in zip((layer.product(x), layer.input_gradient(dy)), expected, strict=True):
        assert found.dtype == dtype
        assert _error(found, plain) < 4 * torch.finfo(dtype).eps


@pytest.mark.usefixtures("integers")
def test_results_do_not_depend_on_the_tiles_and_pieces(monkeypatch: pytest.MonkeyPatch):
    layer, x, dy = _layer(37), torch.randn(9, 128), torch.randn(9, 37)
    expected = layer.product(x)
    monkeypatch.setattr(nf4, "CHANNELS", 16)
    monkeypatch.setattr("tsugiki.lowbit.int8.CHANNELS", 16)
    monkeypatch.setattr(integer_products, "_ROWS", 4)
    monkeypatch.setattr(nf4, "_PIECE", 100)
    small = Nf4Linear(_weight(37), layer.bias, torch.bfloat16)
    assert torch.equal(small.product(x), expected)
    assert _error(small.input_gradient(dy), _plain(small, x, dy)[1]) < 1e-6


def test_a_weight_of_4_bits_is_9_percent_off_and_takes_4_13_bits():
    weight = torch.randn(512, 4096, generator=torch.Generator().manual_seed(0))
    layer = Nf4Linear(weight, None, torch.bfloat16)
    assert 0.09 < _error(layer.dequantize(), weight) < 0.0935  # bitsandbytes with double quantisation: 0.0921
    size = sum(t.numel() * t.element_size() for t in (layer.packed, layer.blocks, layer.scale))
    assert size * 8 / weight.numel() == pytest.approx(4 + 8 / 64 + 32 / 4096)
