"""Products of a few rows by the C functions, beside torch and a formula in float64."""

from itertools import cycle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.runs import threads
from tsugiki.lowbit import (
    FEW_AMX_ROWS,
    FEW_CODED_ROWS,
    FEW_FLOAT_ROWS,
    FEW_INTEGER_ROWS,
    FEW_ROWS,
    FEW_TRANSPOSED_AMX_ROWS,
    FEW_TRANSPOSED_ROWS,
    LEAST_AMX_ROWS,
    Nf4Linear,
    few_integer_rows,
    few_rows,
    few_rows_product,
    plain_scaled,
)
from tsugiki.lowbit.integer_passes import plain_levels
from tsugiki.lowbit.integer_products import product
from tsugiki.lowbit.nf4 import plain_levels as plain_levels_of_codes
from tsugiki.native import native, native_for

SHAPES = [(1, 1), (130, 257), (5, 33), (64, 96), (3, 100), (7, 31), (9, 577)]
ROWS = [1, 2, 3, FEW_TRANSPOSED_ROWS, 5, FEW_ROWS, FEW_TRANSPOSED_AMX_ROWS, 17, FEW_AMX_ROWS, 40]
needs = {
    dtype: pytest.mark.skipif(native("few_rows", dtype) is None, reason="no compiler, or not this processor")
    for dtype in ("bfloat16", "float32")
}
needs["int8"] = pytest.mark.skipif(native("few_integer_rows", "float32") is None, reason="no compiler, or no VNNI")
AMX = pytest.param(
    "amx", marks=pytest.mark.skipif(native("few_rows_amx", "bfloat16") is None, reason="the processor has no AMX")
)


@pytest.fixture
def unit(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The unit of the processor that multiplies: amx, or avx512 on a processor that seems to have no AMX."""
    if request.param == "avx512":
        monkeypatch.setattr(few_rows, "native_for", lambda kind, x: None if "amx" in kind else native_for(kind, x))
    return request.param


def _weight(out: int, width: int, transposed: bool) -> torch.Tensor:
    weight = torch.randn(out, width).bfloat16()
    return weight.T.contiguous().T if transposed else weight


@needs["bfloat16"]
@pytest.mark.parametrize("unit", ["avx512", AMX], indirect=True)
@pytest.mark.parametrize(("rows", "shape", "transposed"), zip(ROWS, cycle(SHAPES), cycle([True, False])))
def test_floats_are_those_of_the_formula(rows: int, shape: tuple[int, int], transposed: bool, unit: str):
    (out, width), with_bias = shape, rows % 2 == 0
    x, weight = torch.randn(rows, width).bfloat16(), _weight(out, width, transposed)
    bias = torch.randn(out).bfloat16() if with_bias else None
    expected = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    size = F.linear(x.double().abs(), weight.double().abs())
    with torch.no_grad():
        found = few_rows_product(x, weight, bias)
    assert found.dtype == torch.bfloat16
    assert ((found.double() - expected).abs() <= expected.abs() / 256 + size * 1e-6).all()


@needs["float32"]
@pytest.mark.parametrize(("rows", "shape"), zip([*range(1, FEW_FLOAT_ROWS + 2)], cycle(SHAPES)))
def test_products_in_float32_are_those_of_the_formula(rows: int, shape: tuple[int, int]):
    (out, width), bias = shape, torch.randn(shape[0]) if rows % 2 == 0 else None
    x, weight = torch.randn(rows, width), torch.randn(out, width)
    with torch.no_grad():
        found = few_rows_product(x, weight, bias)
        alone = few_rows_product(x[:1], weight, bias)
    torch.testing.assert_close(found, F.linear(x, weight, bias), rtol=1e-5, atol=1e-4)
    assert rows > FEW_FLOAT_ROWS or torch.equal(found[:1], alone)


@torch.no_grad()
@needs["bfloat16"]
@pytest.mark.parametrize("unit", ["avx512", AMX], indirect=True)
@pytest.mark.parametrize("transposed", [True, False])
def test_a_row_is_the_same_beside_other_rows_and_numbers_beside_the_weight_are_not_read(transposed: bool, unit: str):
    few, most = {"avx512": (FEW_TRANSPOSED_ROWS, FEW_ROWS), "amx": (FEW_TRANSPOSED_AMX_ROWS, FEW_AMX_ROWS)}[unit]
    whole = torch.full((40, 112), float("nan")).bfloat16()
    part = whole[:35] if transposed else whole[:37]
    part.copy_(torch.randn(part.shape))
    weight = part.T if transposed else part
    x = torch.randn(few if transposed else most, weight.shape[1]).bfloat16()
    together = few_rows_product(x, weight, None)
    assert together.isfinite().all()
    by_same_function = x.split(1 if unit == "avx512" else LEAST_AMX_ROWS)
    assert torch.equal(together, torch.cat([few_rows_product(rows, weight, None) for rows in by_same_function]))


@needs["int8"]
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "shape"), zip(range(1, FEW_INTEGER_ROWS + 1), cycle(SHAPES)))
def test_integers_are_those_of_the_definition(rows: int, shape: tuple[int, int], dtype: torch.dtype):
    (out, width), bias = shape, torch.randn(shape[0]) if rows % 2 == 0 else None
    x, blocks = torch.randn(rows, width), 4 if width % 4 == 0 else 1
    x[:, ::13] *= 300  # beyond 8 bits
    x = x.to(dtype)
    w, scale = torch.randint(-127, 128, (out, width), dtype=torch.int8), torch.rand(out) + 0.1
    m, s = plain_levels(x, blocks)
    expected = torch.empty(rows, out, dtype=dtype)
    plain_scaled((m.long() @ w.long().T).int(), s, scale, bias, expected)
    found = few_integer_rows(x, w, scale, bias, blocks)
    assert found is not None
    assert torch.equal(found, expected)


@needs["int8"]
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "shape"), [(1, (9, 64)), (3, (130, 192)), (FEW_CODED_ROWS, (17, 640))])
def test_codes_of_4_bits_give_the_integers_of_their_levels(rows: int, shape: tuple[int, int], dtype: torch.dtype):
    layer = Nf4Linear(torch.randn(shape), nn.Parameter(torch.randn(shape[0])), torch.float32)
    x = torch.randn(rows, shape[1])
    x[:, ::13] *= 300  # beyond 8 bits
    x[-1, 3] = torch.nan  # of this row alone
    tiles = [(plain_levels_of_codes(layer.packed, layer.blocks).to(torch.int8), layer.scale)]
    expected = product(x.to(dtype), tiles, layer.bias, shape[0])
    found = layer.product(x.to(dtype))
    assert torch.equal(found[:-1], expected[:-1])
    assert found[:-1].isfinite().all()
    assert found[-1].isnan().all()
    with threads(2):
        assert torch.equal(layer.product(x.to(dtype))[:-1], found[:-1])


@needs["int8"]
def test_the_largest_integers_are_exact_and_others_are_left_to_torch():
    x, w = torch.full((3, 2048), -1.0), torch.full((5, 2048), 127, dtype=torch.int8)
    scale, (_, s) = torch.ones(5), plain_levels(x, 1)
    found = few_integer_rows(x, w, scale, None, 1)
    assert found is not None
    assert torch.equal(found, (s * (-127.0 * 127 * 2048)).expand(3, 5))
    for others in (
        (x, w[:, :4], scale, None, 1),
        (x, w, scale[:4], None, 1),
        (x, w, scale, torch.ones(4), 1),
        (x, w, scale, None, 4096),
        (x.double(), w, scale, None, 1),
        (torch.randn(FEW_INTEGER_ROWS + 1, 2048), w, scale, None, 1),
    ):
        assert few_integer_rows(*others) is None


@torch.no_grad()
@pytest.mark.parametrize("rows", [2, FEW_AMX_ROWS + 1])
def test_elsewhere_it_is_torchs_product(rows: int, monkeypatch: pytest.MonkeyPatch):
    x, weight, bias = torch.randn(rows, 8), torch.randn(3, 8), torch.randn(3)
    assert torch.equal(few_rows_product(x.double(), weight.double(), None), F.linear(x.double(), weight.double()))
    strided = torch.randn(3, 16).bfloat16()[:, ::2]
    assert torch.equal(few_rows_product(x.bfloat16(), strided, None), F.linear(x.bfloat16(), strided))
    with pytest.raises(RuntimeError, match="size"):
        few_rows_product(x.bfloat16(), weight.bfloat16(), torch.ones(4).bfloat16())
    with torch.enable_grad():
        assert few_rows_product(x.bfloat16(), weight.bfloat16().requires_grad_(), None).requires_grad
    for count, found in ((2, lambda *_: pytest.fail("the C function was looked up")), (1, lambda *_: None)):
        monkeypatch.setattr(few_rows, "native_for", found)
        with threads(count):
            assert torch.equal(few_rows_product(x, weight, bias), F.linear(x, weight, bias))
            assert few_integer_rows(x, torch.ones(3, 8, dtype=torch.int8), torch.ones(3), None, 1) is None
