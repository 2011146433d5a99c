"""The 4-bit layer: its codes compared with bitsandbytes, its products with the definition in floats."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.lowbit.definition import DTYPES, error
from tests.tiny import seeded
from tsugiki.lowbit import FEW_CODED_ROWS, Nf4Linear, decode, decode_by_pairs, encode, nf4
from tsugiki.lowbit.nf4 import plain_levels


def _weight(out: int, into: int) -> Tensor:
    generator = seeded(0)
    return torch.randn(out, into, generator=generator) * torch.logspace(-2, 1, out)[:, None]


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
@pytest.mark.parametrize("shape", [(256, 9), (1, 1), (0, 3), (300, 1)])
def test_decoding_equals_the_definition(
    decoding: Callable[..., None], shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(nf4, "_PIECE", 512)  # several pieces
    packed = torch.arange(shape[1] * 32).to(torch.uint8).repeat(shape[0], 1)
    blocks = torch.arange(shape[0]).to(torch.uint8)[:, None].repeat(1, shape[1])  # in the first shape, every pair
    scale = torch.randn(shape[0]) * torch.logspace(-30, 30, shape[0])
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
    codes = torch.arange(16, dtype=torch.uint8).repeat(4)  # a block has 64 weights
    packed = (codes[::2] << 4 | codes[1::2]).repeat(255, 1)  # two codes in a byte, the first one in the high bits
    largest_level, rounding = 127, 0.5001
    expected = torch.tensor(nf4.NF4)[codes.long()] * blocks / 255 * largest_level
    assert (plain_levels(packed, blocks) - expected).abs().max() <= rounding


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("into", [128, 100])
def test_products_in_floats_equal_those_with_the_dequantised_weight(
    dtype: torch.dtype, into: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(nf4, "integers_pay", lambda x: False)
    monkeypatch.setattr(nf4, "CHANNELS", 16)
    torch.manual_seed(1)
    layer = Nf4Linear(_weight(40, into), nn.Parameter(torch.randn(40)), torch.bfloat16)
    x, dy = torch.randn(FEW_CODED_ROWS + 1, into).to(dtype), torch.randn(6, 40).to(dtype)
    weight = layer.dequantize()
    expected = F.linear(x.float(), weight, layer.bias), dy.float() @ weight
    for found, plain in zip((layer.product(x), layer.input_gradient(dy)), expected, strict=True):
        assert found.dtype == dtype
        assert error(found, plain) < 4 * torch.finfo(dtype).eps


def test_a_weight_of_4_bits_is_9_percent_off_and_takes_4_13_bits():
    weight = torch.randn(512, 4096, generator=seeded(0))
    layer = Nf4Linear(weight, None, torch.bfloat16)
    assert 0.09 < error(layer.dequantize(), weight) < 0.0935  # bitsandbytes with double quantisation: 0.0921
    size = sum(t.numel() * t.element_size() for t in (layer.packed, layer.blocks, layer.scale))
    assert size * 8 / weight.numel() == pytest.approx(4 + 8 / 64 + 32 / 4096)
