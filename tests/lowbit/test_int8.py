"""The integer products, compared with the same rounding in floats and with the float weight."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tests.lowbit.definition import assert_is_plain, error
from tsugiki.lowbit import (
    Int8Linear,
    exact_integers,
    integer_products,
    plain_dithered,
    plain_rotated,
)

needs_exact_integers = pytest.mark.skipif(not exact_integers(), reason="the plain twin is all that runs here")


def test_each_rotated_row_is_rounded_to_255_levels_of_its_largest_value():
    layer = Int8Linear(torch.eye(64), None, torch.float32)  # so the product is x, rotated, rounded and rotated back
    x = torch.randn(9, 64) * torch.logspace(-20, 20, 9)[:, None]
    largest = plain_rotated(x, 64).abs().amax(1, keepdim=True)
    levels = plain_rotated(layer.product(x), 64) * 127 / largest
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-4)
    torch.testing.assert_close(levels.abs().amax(1), torch.full((9,), 127.0))
    torch.testing.assert_close(levels, plain_rotated(x, 64) * 127 / largest, rtol=0, atol=0.5001)


@pytest.fixture
def tenths() -> Tensor:
    """Rows of a tenth of their step: a row, its negative, twice the row, and the row again."""
    x = torch.full((4, 3000), 0.1)
    x[:, 0] = 127
    x[1], x[2] = -x[1], 2 * x[2]
    return x


def test_the_step_of_dither_is_the_largest_value_of_a_row_by_127(tenths: Tensor):
    _q, s, _lost = plain_dithered(tenths, torch.ones(3000))
    assert s.flatten().tolist() == [1, 1, 2, 1]


def test_dither_rounds_a_tenth_of_a_step_to_one_in_a_tenth_of_the_places(tenths: Tensor):
    q, _s, _lost = plain_dithered(tenths, torch.ones(3000))
    assert set(q[0, 1:].tolist()) == {0, 1}
    assert 0.095 < float(q[0, 1:].float().mean()) < 0.105
    assert -0.105 < float(q[1, 1:].float().mean()) < -0.095


def test_dither_of_a_row_does_not_depend_on_its_place_in_the_batch(tenths: Tensor):
    q, _s, _lost = plain_dithered(tenths, torch.ones(3000))
    assert torch.equal(q[0], q[3])


def test_dither_returns_the_sum_of_what_each_row_loses(tenths: Tensor):
    q, s, lost = plain_dithered(tenths, torch.ones(3000))
    torch.testing.assert_close(lost, (tenths - s * q).double().sum(1, keepdim=True).float(), rtol=0, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zeros_huge_and_tiny_values(dtype: torch.dtype):
    layer = Int8Linear(torch.randn(40, 48), None, torch.bfloat16)
    for values in (0.0, 1e-42, 1e-30, 1e30):
        x, dy = torch.full((3, 48), values, dtype=dtype), torch.full((3, 40), values, dtype=dtype)
        x[1], dy[1] = 0, 0
        assert_is_plain(layer, x, dy)
        assert (layer.product(x)[1] == 0).all()
        assert (layer.input_gradient(dy)[1] == 0).all()
    x = torch.ones(3, 48, dtype=dtype)
    x[0, 3], x[2, 5] = float("nan"), float("inf")
    finite = layer.product(x).isfinite()
    assert not finite[0].any()
    assert not finite[2].any()
    assert finite[1].all()


def test_a_channel_of_zeros_gives_its_bias():
    weight = torch.randn(6, 8)
    weight[2] = 0
    layer = Int8Linear(weight, nn.Parameter(torch.arange(6.0)), torch.float32)
    assert (layer.product(torch.randn(4, 8))[:, 2] == 2).all()
    assert layer.input_gradient(torch.randn(4, 6)).isfinite().all()


@pytest.mark.parametrize("plain", [nn.Linear(768, 576), Conv1D(576, 768)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_error_for_gaussian_values_is_below_1_5_percent(plain: Any, dtype: torch.dtype):
    torch.manual_seed(1)
    nn.init.normal_(plain.requires_grad_(False).weight)
    layer = Int8Linear.from_layer(plain, dtype)
    x, dy = torch.randn(64, 768), torch.randn(64, 576)
    weight = plain.weight if isinstance(plain, nn.Linear) else plain.weight.T
    assert 0.001 < error(layer.product(x.to(dtype)), plain(x)) < 0.015
    assert 0.001 < error(layer.input_gradient(dy.to(dtype)), dy @ weight) < 0.015
    assert error(layer.weight, weight) < 0.01


def test_thousands_of_tiny_softmax_gradients_are_kept():
    """The gradient is near -1 for one channel; rounded to the nearest integer, most others would be 0.

    The likely words have other rows in the weight than the mean word, so that giving back the sum would not be enough.
    """
    torch.manual_seed(1)
    weight, targets = torch.randn(8192, 64), torch.arange(0, 8192, 16)
    weight[::3] += 2
    logits = torch.randn(512, 8192) * 2.5
    logits[:, ::3] += 2
    dz = torch.softmax(logits, -1)
    dz[torch.arange(512), targets] -= 1
    layer = Int8Linear(weight, None, torch.float32)
    dx, exact = layer.input_gradient(dz), dz @ weight
    assert error(dx, exact) < 0.06
    assert error(dx.sum(0), exact.sum(0)) < 0.003  # a row errs by chance, so that the sum of rows hardly errs
    assert_is_plain(layer, torch.randn(16, 64), dz[:16])


@needs_exact_integers
def test_other_processors_use_the_plain_products(monkeypatch: pytest.MonkeyPatch):
    layer, x, dy = Int8Linear(torch.randn(40, 48), None, torch.bfloat16), torch.randn(5, 48), torch.randn(5, 40)
    expected = layer.product(x), layer.input_gradient(dy)
    monkeypatch.setattr(integer_products, "exact_integers", lambda: False)
    monkeypatch.setattr(torch, "_int_mm", None)
    torch.testing.assert_close(layer.product(x), expected[0])
    torch.testing.assert_close(layer.input_gradient(dy), expected[1])


@pytest.mark.slow
def test_a_processor_that_saturates_is_detected():
    """With AVX2 only, oneDNN adds in 16 bits on many processors; such a product is wrong and must not be used."""
    program = """if True:
        import torch
        from tsugiki.lowbit.int8 import Int8Linear
        from tsugiki.lowbit.integer_products import exact_integers
        layer, x = Int8Linear(torch.ones(64, 256), None, torch.float32), torch.ones(64, 256)
        largest = torch.full((64, 256), 127, dtype=torch.int8)
        saturates = bool((torch._int_mm(largest, largest.T) != 256 * 127 * 127).any())
        assert exact_integers() is not saturates
        torch.testing.assert_close(layer.product(x), torch.full((64, 64), 256.0))
    """
    subprocess.run([sys.executable, "-c", program], check=True, env={"ONEDNN_MAX_CPU_ISA": "AVX2"})


@pytest.mark.parametrize("rows", [1, 3072, 300])
def test_the_mean_row_is_exact(rows: int):
    w = torch.randint(-127, 128, (rows, 40), dtype=torch.int8)
    w[:, 0] = 127
    assert torch.equal(integer_products.mean_row(w), (w.double().sum(0).float() / rows))
