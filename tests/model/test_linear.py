"""What is asked of a frozen layer: its product, input gradient, sizes, device and dtypes, for every class of layer."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from tsugiki.lowbit import Int8Linear
from tsugiki.model import (
    device_of,
    features,
    frozen_input_gradient,
    frozen_product,
    has_product,
    is_conv1d,
    is_graftable,
    is_linear,
    is_stored_in_out,
)
from tsugiki.model import linear as frozen_layer

LAYERS: dict[str, Any] = {
    "linear": lambda: nn.Linear(5, 4),
    "no bias": lambda: nn.Linear(5, 4, bias=False),
    "conv1d": lambda: Conv1D(4, 5),
    "int8": lambda: Int8Linear(torch.randn(4, 5), nn.Parameter(torch.randn(4)), torch.float32),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_the_product_and_the_input_gradient(kind: str):
    torch.manual_seed(0)
    layer = LAYERS[kind]().requires_grad_(False)
    assert has_product(layer)
    x = torch.randn(3, 5, requires_grad=True)
    y = layer(x)
    torch.testing.assert_close(frozen_product(layer, x.detach()), y)
    dy = torch.randn(3, 4)
    torch.testing.assert_close(frozen_input_gradient(layer, dy), torch.autograd.grad(y, x, dy)[0])


def test_other_layers():
    assert features(nn.Embedding(7, 3)) == (7, 3)
    assert is_stored_in_out(nn.Embedding(7, 3))
    assert features(nn.Conv2d(3, 4, (2, 5))) == (30, 4)
    assert is_graftable(nn.Conv2d(3, 4, 2))
    assert not is_graftable(nn.LayerNorm(3))
    assert not is_linear(nn.MultiheadAttention(4, 2).out_proj), "its weight is used without calling it"


def test_without_transformers_no_layer_is_a_conv1d(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(frozen_layer.sys.modules, "transformers.pytorch_utils")
    assert not is_conv1d(nn.Linear(2, 2))
    assert has_product(nn.Linear(2, 2).requires_grad_(False))


def test_the_device_and_dtype_are_known_without_dequantising(monkeypatch: pytest.MonkeyPatch):
    layer = Int8Linear(torch.randn(2, 2), None, torch.float32)
    monkeypatch.delattr(Int8Linear, "dequantize")
    assert device_of(layer) == torch.device("cpu")
    assert device_of(nn.Sequential(layer.to("meta"))) == torch.device("meta")
