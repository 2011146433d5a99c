"""Products of rows in which a few features are much larger than the others, as in Llama, Mistral and Gemma."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tsugiki.lowbit import Int8Linear, Nf4Linear, QuantizedLayer

WIDTH, FEATURES = 2048, [5, 777]


def _layer(kind: str) -> QuantizedLayer:
    weight = torch.randn(96, WIDTH, generator=torch.Generator().manual_seed(0)) * 0.02
    return {"int8": Int8Linear, "nf4": Nf4Linear}[kind](weight, None, torch.bfloat16)


def _rows(factor: float, rows: int = 48) -> Tensor:
    x = torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(1))
    x[:, FEATURES] *= factor
    return x.bfloat16()


@pytest.mark.usefixtures("integers")
@pytest.mark.parametrize("kind", ["int8", "nf4"])
@pytest.mark.parametrize("factor", [1, 30, 1000])
def test_ordinary_features_are_kept_beside_massive_ones(kind: str, factor: float):
    """The error, relative to what the ordinary features contribute, is near that of a product in bfloat16."""
    layer, x = _layer(kind), _rows(factor)
    weight, rest = layer.dequantize().double(), x.double()
    exact = x.double() @ weight.T
    rest[:, FEATURES] = 0
    ordinary = (rest @ weight.T).norm()
    in_bfloat16 = float((F.linear(x, weight.bfloat16()).double() - exact).norm() / ordinary)
    error = float((layer.product(x).double() - exact).norm() / ordinary)
    assert error < 2 * in_bfloat16 + 0.014


@pytest.mark.usefixtures("integers")
@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_row_has_the_same_bits_beside_any_other_rows(kind: str):
    layer = _layer(kind)
    x = torch.cat([_rows(1, 3), _rows(100, 3), _rows(3000, 3), torch.zeros(1, WIDTH, dtype=torch.bfloat16)])
    together = layer.product(x)
    for row in range(len(x)):
        assert torch.equal(layer.product(x[row : row + 1])[0], together[row])
    x[4, 9], x[0, 0] = torch.inf, torch.nan
    others = layer.product(x)
    assert not others[[0, 4]].isfinite().any()
    assert torch.equal(others[[1, 2, 3, 5, 6, 7, 8, 9]], together[[1, 2, 3, 5, 6, 7, 8, 9]])
