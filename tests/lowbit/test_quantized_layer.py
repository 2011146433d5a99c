"""What layers in 8 and in 4 bits share: they are called, moved and cast like the layer that they replace."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from tests.lowbit.definition import DTYPES, assert_is_plain
from tests.tiny import relative_error
from tsugiki.lowbit import (
    Int8Linear,
    Nf4Linear,
    QuantizedLayer,
    exact_integers,
    int8,
    integer_products,
    is_quantizable,
    nf4,
)
from tsugiki.model import QuantizedLinear

OUT, IN = 40, 128
CODES = {Int8Linear: {"qweight"}, Nf4Linear: {"packed", "blocks"}}
pytestmark = pytest.mark.parametrize("kind", CODES)


def _layer(kind: type[QuantizedLayer], bias: bool = True) -> QuantizedLayer:
    torch.manual_seed(0)
    return kind.from_layer(nn.Linear(IN, OUT, bias=bias).requires_grad_(False), torch.bfloat16)


@pytest.mark.usefixtures("integers")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("out", "into", "rows", "bias"),
    [(48, 40, 17, True), (33, 7, 3, False), (64, 100, 1, True), (2, 65, 0, False), (3200, 96, 300, True)],
)
def test_both_products_equal_the_plain_ones(
    kind: Any, dtype: torch.dtype, bias: bool, out: int, into: int, rows: int, monkeypatch: pytest.MonkeyPatch
):
    torch.manual_seed(1)
    weight = torch.randn(out, into) * torch.logspace(-2, 1, out)[:, None]
    layer = kind(weight, nn.Parameter(torch.randn(out)) if bias else None, torch.bfloat16)
    x, dy = torch.randn(rows, into).to(dtype), torch.randn(rows, out).to(dtype)
    assert_is_plain(layer, x, dy)
    for module, name, size in ((integer_products, "_ROWS", 4), (int8, "CHANNELS", 16), (nf4, "CHANNELS", 16)):
        monkeypatch.setattr(module, name, size)  # many tiles, the last of them smaller
    monkeypatch.setattr(nf4, "_PIECE", 100)
    in_pieces = kind(weight, layer.bias, torch.bfloat16)
    assert_is_plain(in_pieces, x[:9], dy[:9])
    assert torch.equal(in_pieces.dequantize(), layer.dequantize())


@pytest.mark.parametrize(
    ("shape", "dtype", "bias"),
    [((IN,), torch.float32, True), ((2, 3, IN), torch.bfloat16, False), ((0, IN), torch.float16, True)],
)
def test_forward_and_its_gradient(kind: Any, shape: tuple[int, ...], dtype: torch.dtype, bias: bool):
    torch.manual_seed(1)
    layer = _layer(kind, bias)
    x = torch.randn(shape).to(dtype).requires_grad_()
    dy = torch.randn(*shape[:-1], OUT).to(dtype)
    y = layer(x)
    y.backward(dy)
    assert x.grad is not None
    assert torch.equal(y, layer.product(x.detach().reshape(-1, IN)).view(*shape[:-1], OUT))
    assert torch.equal(x.grad, layer.input_gradient(dy.reshape(-1, OUT)).view(shape))
    # It approximates the gradient of the plain product, with rounding treated as the identity.
    z = x.detach().float().requires_grad_()
    F.linear(z, layer.dequantize()).backward(dy.float())
    assert z.grad is not None
    assert not z.numel() or relative_error(x.grad.float(), z.grad) < 0.02


def test_a_trained_bias_gets_its_gradient_and_nothing_is_kept_for_backward(kind: Any):
    layer, kept = _layer(kind), []
    layer.bias = nn.Parameter(torch.zeros(OUT))
    dy = torch.randn(2, 3, OUT)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = layer(torch.randn(2, 3, IN, requires_grad=True))
    assert not kept
    y.backward(dy)
    torch.testing.assert_close(layer.bias.grad, dy.sum((0, 1)))
    assert not _layer(kind)(torch.randn(5, IN)).requires_grad


def test_it_has_the_attributes_of_the_layer_that_it_replaces(kind: Any):
    plain = Conv1D(OUT, IN)
    layer = kind.from_layer(plain, torch.bfloat16)
    assert isinstance(layer, QuantizedLinear)
    assert is_quantizable(plain)
    assert not is_quantizable(layer)
    assert torch.equal(layer.scale, kind(plain.weight.T.contiguous(), None, torch.float32).scale)
    assert layer.weight.shape == (OUT, IN)
    assert layer.weight.dtype == torch.bfloat16
    assert layer.bias is plain.bias
    assert set(layer.state_dict()) == {*CODES[kind], "scale", "means", "bias"}
    assert {id(p) for p in layer.parameters()} == {id(p) for p in (*layer.codes(), layer.bias)}
    assert not any(p.requires_grad for p in layer.codes())
    assert not list(layer.buffers()), "FSDP shards parameters only, and DDP sends buffers in every forward pass"
    assert str(layer) == f"{kind.__name__}(in_features={IN}, out_features={OUT}, bias=True)"


def test_moving_and_casting_keep_codes_and_scales(kind: Any):
    layer = _layer(kind)
    moved: Any = copy.deepcopy(layer).to(torch.float16)
    assert all(torch.equal(getattr(moved, name), getattr(layer, name)) for name in (*CODES[kind], "scale", "means"))
    assert moved.weight.dtype == moved.bias.dtype == torch.float16
    assert layer.to("cpu").dtype == torch.bfloat16
    on_meta = layer.to("meta")
    assert on_meta.product(torch.zeros(5, IN, device="meta")).shape == (5, OUT)
    assert on_meta.input_gradient(torch.zeros(5, OUT, device="meta")).shape == (5, IN)


def test_strides_do_not_matter_and_the_inputs_are_not_overwritten(kind: Any):
    layer = _layer(kind)
    for x, dy in (
        (torch.randn(IN, 6).T, torch.randn(OUT, 6).T),
        (torch.randn(12, 2 * IN)[::2, ::2], torch.randn(12, 2 * OUT)[::2, ::2]),
        (torch.randn(IN).expand(6, IN), torch.randn(OUT).expand(6, OUT)),
    ):
        before = x.clone(), dy.clone()
        assert torch.equal(layer.product(x), layer.product(x.contiguous()))
        assert torch.equal(layer.input_gradient(dy), layer.input_gradient(dy.contiguous()))
        assert torch.equal(x, before[0])
        assert torch.equal(dy, before[1])


@pytest.mark.skipif(not exact_integers(), reason="floats are multiplied here")
def test_a_compiled_layer_computes_the_same(kind: Any):
    layer, x = _layer(kind), torch.randn(5, IN).requires_grad_()
    y = torch.compile(layer, backend="eager")(x)
    assert relative_error(y, layer(x)) < 0.015  # a compiled layer in 4 bits multiplies floats, without rounding x
    y.sum().backward()
    assert x.grad is not None
    assert relative_error(x.grad, layer.input_gradient(torch.ones(5, OUT))) < 0.02
