"""`matrix_product` against `F.linear`, and the choice between oneDNN and torch's default."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.tiny import relative_error
from tsugiki.io import measurements
from tsugiki.model import LIBRARIES, matrix_product, onednn_is_faster, products, uses_onednn

ONEDNN, TORCH = {"onednn": 1.0, "torch": 2.0}, {"onednn": 1.0, "torch": 1.05}
needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch has no oneDNN here")


@pytest.fixture
def onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use oneDNN, also where it is slower."""
    monkeypatch.setitem(measurements._decided, LIBRARIES, True)
    monkeypatch.setattr(products, "_LEAST_WORK", 1)


@needs_onednn
@pytest.mark.usefixtures("onednn")
@pytest.mark.parametrize("rows", [2, 7, 64])
def test_onednn_gives_the_product_of_torch(rows: int):
    torch.manual_seed(0)
    bias = torch.randn(40)
    for weight in (torch.randn(40, 24), torch.randn(24, 40).T):
        for x in (torch.randn(rows, 24), torch.randn(24, rows).T):
            for of_weight in (bias, None):
                assert uses_onednn(x, weight, of_weight)
                expected = F.linear(x, weight, of_weight)
                y = matrix_product(x.view(1, *x.shape), weight, of_weight)[0]
                assert y.shape == expected.shape
                assert y.is_contiguous()
                assert relative_error(y, expected) < 1e-6


@needs_onednn
@pytest.mark.usefixtures("onednn")
@pytest.mark.parametrize("conv1d", [False, True])
def test_gradients_are_those_of_torch_and_change_no_bit_of_the_result(conv1d: bool):
    torch.manual_seed(0)
    weight, dy = torch.randn(24, 40).T if conv1d else torch.randn(40, 24), torch.randn(2, 3, 40)
    x, bias = torch.randn(2, 3, 24, requires_grad=True), torch.randn(40, requires_grad=True)
    y = matrix_product(x, weight, bias)
    found = torch.autograd.grad((y * dy).sum(), (x, bias))
    expected = torch.autograd.grad((F.linear(x, weight, bias) * dy).sum(), (x, bias))
    for one, other in zip(found, expected, strict=True):
        assert relative_error(one, other) < 1e-6
    with torch.no_grad():
        assert torch.equal(matrix_product(x, weight, bias), y)


@needs_onednn
@pytest.mark.usefixtures("onednn")
def test_what_onednn_cannot_multiply_is_multiplied_by_torch():
    x, weight, bias = torch.randn(3, 24), torch.randn(40, 24), torch.randn(80)[::2]
    assert not uses_onednn(x, weight, bias)  # it would read neighbouring elements
    torch.testing.assert_close(matrix_product(x, weight, bias), F.linear(x, weight, bias), rtol=0, atol=0)
    trained = nn.Parameter(weight)
    assert not uses_onednn(x, trained)
    matrix_product(x, trained).sum().backward()
    torch.testing.assert_close(trained.grad, x.sum(0).expand(40, 24))
    with torch.no_grad():
        assert uses_onednn(x, trained)
    for given in ((x.bfloat16(), weight.bfloat16()), (x.double(), weight.double()), (x.to("meta"), weight.to("meta"))):
        assert not uses_onednn(*given)
    with torch.autocast("cpu", torch.bfloat16):
        assert matrix_product(x, weight).dtype == torch.bfloat16
    with pytest.raises(RuntimeError, match="3x24 and 23x40"):
        matrix_product(x, weight[:, 1:])
    assert matrix_product(x[:0], weight).shape == (0, 40)
    assert not uses_onednn(x[:1], weight)
    for slow in (torch.randn(3, 48)[:, :24], torch.randn(1, 24).expand(3, 24)):
        assert not uses_onednn(slow, weight)
        assert not uses_onednn(weight, slow)


def _as_in_a_new_process(seconds: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    calls: list[Any] = []
    monkeypatch.setattr(measurements, "_decided", {})
    monkeypatch.setattr(products, "measure", lambda: calls.append(1) or seconds)
    return calls


@needs_onednn
def test_the_faster_library_is_measured_once_and_kept(monkeypatch: pytest.MonkeyPatch):
    calls = _as_in_a_new_process(TORCH, monkeypatch)
    assert [onednn_is_faster(), onednn_is_faster()] == [False, False]  # 1.05 times as fast is not enough
    assert len(calls) == 1
    calls = _as_in_a_new_process(ONEDNN, monkeypatch)
    assert not onednn_is_faster()
    assert not calls
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    monkeypatch.setitem(measurements._decided, LIBRARIES, True)
    assert not onednn_is_faster()
