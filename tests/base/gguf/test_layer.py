"""Layers in GGUF's own quantisation: weights compared with the gguf package, products with those weights in floats."""

import copy
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tsugiki.base import BLOCKS, GgufLinear
from tsugiki.base.gguf import layer as gguf_layer
from tsugiki.lowbit import Int8Linear, plain_input_gradient, plain_product, quantized_layer
from tsugiki.model import QuantizedLinear

HALVES = {"Q4_1": (0, 2), "Q5_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}
"""Where a block has numbers of 16 bits; others have one at its beginning."""


def _bytes(type: str, out: int = 40, into: int = 512) -> np.ndarray:
    """Return random bytes with sensible scales, as in a file: uint8 [out, bytes of a row]."""
    generator = np.random.default_rng(0)
    numbers, size = BLOCKS[type]
    blocks = generator.integers(0, 256, (out, into // numbers, size), dtype=np.uint8)
    for start in HALVES.get(type, (0,)):
        scales = (generator.standard_normal((out, into // numbers, 1)) * 0.02).astype(np.float16)
        blocks[:, :, start : start + 2] = scales.view(np.uint8)
    return blocks.reshape(out, -1)


def _layer(type: str, out: int = 40, into: int = 512, bias: bool = True) -> GgufLinear:
    torch.manual_seed(0)
    blocks = torch.from_numpy(_bytes(type, out, into))
    return GgufLinear(blocks, type, nn.Parameter(torch.randn(out)) if bias else None, torch.bfloat16)


def _error(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).detach().norm() / b.detach().double().norm())


@pytest.mark.parametrize("type", BLOCKS)
def test_the_weight_is_that_of_the_gguf_package(type: str, monkeypatch: pytest.MonkeyPatch):
    kind = gguf.GGMLQuantizationType[type]
    assert BLOCKS[type] == gguf.GGML_QUANT_SIZES[kind]
    monkeypatch.setattr(gguf_layer, "_PIECE", 1500)  # several pieces
    blocks = _bytes(type)
    expected = gguf.dequantize(blocks, kind)
    layer = _layer(type)
    assert torch.equal(layer.dequantize(), torch.from_numpy(expected))
    assert (layer.in_features, layer.out_features) == expected.shape[::-1]
    assert torch.equal(layer.blocks, torch.from_numpy(blocks))


@pytest.mark.parametrize(
    ("type", "dtype"),
    [*((type, torch.bfloat16) for type in BLOCKS), ("Q4_K", torch.float32), ("Q8_0", torch.float16)],
)
def test_both_products_are_those_with_the_weight(type: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(quantized_layer, "CHANNELS", 16)
    layer = _layer(type)
    x, dy = torch.randn(7, 512).to(dtype), torch.randn(7, 40).to(dtype)
    weight = layer.dequantize()
    plain = F.linear(x.float(), weight, layer.bias), dy.float() @ weight
    integers = layer.product(x), layer.input_gradient(dy)
    monkeypatch.setattr(quantized_layer, "integers_pay", lambda x: False)
    floats = layer.product(x), layer.input_gradient(dy)
    for exact, in_integers, in_floats in zip(plain, integers, floats, strict=True):
        assert in_integers.dtype == in_floats.dtype == dtype
        assert _error(in_integers, exact) < 0.015  # the rounding of x, of dy and of W to 8 bits
        assert _error(in_floats, exact) < 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("type", ["Q4_K", "Q8_0"])
@pytest.mark.skipif(not quantized_layer.integers_pay(torch.zeros(2, 2)), reason="floats are multiplied here")
def test_integer_products_are_those_of_the_rounded_weight(type: str):
    layer = _layer(type)
    x, dy = torch.randn(7, 512), torch.randn(7, 40)
    levels = (layer.dequantize() / layer.scale[:, None]).round().to(torch.int8)
    assert levels.abs().amax(1).eq(127).all()
    # A few weights are halfway between two levels, where a rounding of the division decides.
    assert _error(layer.product(x), plain_product(x, levels, layer.scale, layer.bias)) < 5e-4
    assert _error(layer.input_gradient(dy), plain_input_gradient(dy, levels, layer.scale)) < 5e-4


def test_it_is_called_moved_and_cast_like_other_quantised_layers():
    layer = _layer("Q4_0")
    assert isinstance(layer, QuantizedLinear)
    assert set(layer.state_dict()) == {"blocks", "scale", "means", "bias"}
    assert not any(p.requires_grad for p in layer.codes())
    assert str(layer) == "GgufLinear(in_features=512, out_features=40, bias=True, Q4_0)"
    moved: Any = copy.deepcopy(layer).to(torch.float16)
    assert torch.equal(moved.scale, layer.scale)
    assert moved.weight.dtype == torch.float16
    x = torch.randn(3, 512, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None
    assert layer.bias is not None
    assert layer.bias.grad is not None
    assert layer.to("meta").product(torch.zeros(5, 512, device="meta")).shape == (5, 40)


def test_another_weight_is_kept_in_8_bits():
    layer, weight = _layer("Q4_K"), torch.randn(40, 512)
    other = layer.requantize(weight)
    assert type(other) is Int8Linear
    assert other.bias is layer.bias
    assert _error(other.dequantize(), weight) < 0.01
