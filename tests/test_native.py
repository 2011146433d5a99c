"""The C functions, compiled by `hatch_build.py`, compared with their definitions: the same bits, or to rounding."""

import hashlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import hatch_build
import pytest
import torch
from torch import Tensor

from tests.runs import run_config, threads
from tests.tiny import relative_error
from tsugiki import native
from tsugiki.cli import version_line
from tsugiki.fast import (
    RowPairs,
    activations,
    add_low_rank,
    attention,
    norms,
    plain_add_low_rank,
    plain_rows,
    product,
    row_products,
    rows_product,
)
from tsugiki.lora import LoraLinear, LowRank, wrap
from tsugiki.lowbit import (
    add_large,
    added,
    blocks_of,
    dithered,
    exact_integers,
    few_rows,
    integer_passes,
    levels_of,
    nf4,
    plain_add_large,
    plain_added,
    plain_dithered,
    plain_rotated,
    plain_rounded,
    plain_scaled,
    rotated,
    rounded,
    scaled,
)
from tsugiki.lowbit.integer_passes import plain_levels
from tsugiki.training import train

ROOT = Path(__file__).parent.parent
SHAPES = [(1, 2), (64, 768), (7, 48), (17, 1001)]
DTYPES = [torch.float32, torch.bfloat16]
pytestmark = pytest.mark.usefixtures("_compiled")


@pytest.fixture(scope="module")
def _compiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let the module use a library of this source, compiled now unless the checkout has one that is newer."""
    if native.LIBRARY.exists() and native.LIBRARY.stat().st_mtime >= (ROOT / "src/tsugiki/native.c").stat().st_mtime:
        yield
        return
    library = tmp_path_factory.mktemp("native") / native.LIBRARY.name
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hatch_build, "LIBRARY", library)
        if not hatch_build.compile_library():
            pytest.skip("no C compiler")
        patch.setattr(native, "LIBRARY", library)
        native.native.cache_clear()
        native._library.cache_clear()
        yield
    native.native.cache_clear()
    native._library.cache_clear()


def _draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return numbers of very different sizes, as a part of longer rows."""
    whole = torch.randn(shape[0], shape[1] + 3) * torch.logspace(-9, 9, shape[0])[:, None]
    return whole.to(dtype)[:, 2:-1]


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether the bits are the same; those of NaN may differ."""
    if a.is_floating_point():
        a, b = (torch.where(t.isnan(), torch.nan, t) for t in (a, b))
    kind = {1: torch.int8, 2: torch.int16, 4: torch.int32}[a.element_size()]
    return a.dtype == b.dtype and torch.equal(a.view(kind), b.view(kind))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_rounding_and_rotating_give_the_bits_of_the_definition(dtype: torch.dtype, shape: tuple[int, int]):
    torch.manual_seed(0)
    x, scale = _draw(*shape, dtype=dtype), torch.rand(shape[1])
    x[0, :2] = 0.5 * x[0].abs().amax() / 127  # half-way between two integers
    for ours, plain in (
        (rounded(x), plain_rounded(x, 1)),
        (rounded(x, blocks_of(shape[1])), plain_rounded(x, blocks_of(shape[1]))),
        (dithered(x, scale), plain_dithered(x, scale)),
        ([rotated(x.float(), blocks_of(shape[1]))], [plain_rotated(x.float(), blocks_of(shape[1]))]),
    ):
        assert all(_same_bits(a, b) for a, b in zip(ours, plain, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [*SHAPES, (40, 8), (40, 65)])
def test_large_numbers_give_the_bits_of_the_definition(dtype: torch.dtype, shape: tuple[int, int]):
    torch.manual_seed(0)
    width = shape[1]
    x = _draw(*shape, dtype=dtype).float()
    x[:, ::11] *= 20
    x[:, width // 2] *= 1e4
    x[-1] = 0
    x[-1, 0] = 1e-32  # its step is too small for a mean
    for blocks in {1, blocks_of(width)}:
        q, s, large = levels_of(x.to(dtype), blocks)
        m, plain_s = plain_levels(x.to(dtype), blocks)
        assert _same_bits(s, plain_s)
        assert torch.equal(q, m.clamp(-127, 127).to(torch.int8))
        assert (large is None) == (m.abs().max() <= 127)
        if large is None:
            continue
        for channels in (1, 7, 64, 130):
            w = torch.randint(-127, 128, (channels, width), dtype=torch.int8)
            ours, plain = ((q.double() @ w.double().T).to(torch.int32) for _ in range(2))
            add_large(ours, large, w)
            plain_add_large(plain, large, w)
            assert torch.equal(ours, plain)
            assert torch.equal(ours, (m.double() @ w.double().T).to(torch.int32))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_what_is_not_finite_gives_a_scale_that_is_not(dtype: torch.dtype, value: float):
    x = torch.ones(3, 40, dtype=dtype)
    x[1, 7], x[2] = value, 0
    for q, s, *lost in (rounded(x), rounded(x, 4), levels_of(x)[:2], dithered(x, torch.ones(40))):
        assert s.isfinite().flatten().tolist() == [True, False, True]
        assert q[0].abs().max() == 127
        assert q[2].tolist() == [0] * 40
        assert all(not each[1].isfinite() for each in lost)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_scaling_gives_the_bits_of_the_definition(dtype: torch.dtype, shape: tuple[int, int]):
    torch.manual_seed(0)
    product = torch.randint(-(1 << 25), 1 << 25, shape, dtype=torch.int32)
    s, scale, lost = torch.rand(shape[0], 1), torch.rand(shape[1]), torch.randn(shape[0], 1)
    s[-1] = torch.nan
    for bias in (None, torch.randn(shape[1])):
        ours, plain = (_draw(*shape, dtype=dtype) for _ in range(2))
        scaled(product.clone(), s, scale, bias, ours)
        plain_scaled(product.clone(), s, scale, bias, plain)
        assert _same_bits(ours, plain)
    for before in (None, torch.randn(shape)):
        ours, plain = (torch.empty(shape, dtype=dtype) for _ in range(2))
        for blocks in {1, blocks_of(shape[1])}:
            added(product.clone(), s, lost, scale, before, ours, blocks)
            plain_added(product.clone(), s, lost, scale, before, plain, blocks)
            assert _same_bits(ours, plain)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_looking_up_an_activation_gives_the_bits_of_the_definition(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    x = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(dtype)
    ours = activations.value_and_slope(x, activations.GELU_TANH, times=x)
    monkeypatch.setattr(activations, "native", lambda kind: None)
    plain = activations.value_and_slope(x, activations.GELU_TANH, times=x)
    assert all(_same_bits(a, b) for a, b in zip(ours, plain, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [64, 1, 100, 4096])
def test_coding_4_bits_gives_the_bits_of_the_definition(dtype: torch.dtype, width: int):
    torch.manual_seed(0)
    weight = _draw(19, width, dtype=dtype)
    weight[3] = 0
    weight[4, : width // 2] = 1e-39
    weight[5] = torch.cat([nf4._bounds(), nf4._bounds().nextafter(torch.tensor(2.0)), torch.ones(width)])[:width]
    ours, plain = (torch.empty(19, -(-width // 64) * 32, dtype=torch.uint8) for _ in range(2))
    assert native.native("nf4_codes", str(dtype).removeprefix("torch.")) is not None
    assert torch.equal(nf4.nearest_codes(weight, ours), nf4.plain_nearest_codes(weight, plain))
    assert torch.equal(ours, plain)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "into", "out"), [(1, 40, 64), (3, 33, 130), (16, 8, 7)])
def test_rows_with_their_own_pairs_equal_the_definition(dtype: torch.dtype, tokens: int, into: int, out: int):
    torch.manual_seed(0)
    layer = wrap(torch.nn.Linear(into, out).requires_grad_(False).to(dtype)).eval()
    assert isinstance(layer, LoraLinear)
    pairs = [None if r == 0 else LowRank(torch.randn(r, into), torch.randn(out, r), 0.5, 0.0) for r in (3, 0, 9, 1)]
    x = torch.randn(4, tokens, into).to(dtype)
    y = layer.base_layer(x)
    assert native.native("rows_added", str(dtype).removeprefix("torch.")) is not None
    ours = rows_product(layer, RowPairs(pairs), x, y.clone())
    assert relative_error(ours, plain_rows(layer, pairs, x, y)) < (1e-6 if dtype == torch.float32 else 1e-2)
    assert torch.equal(ours[1], y[1])


@pytest.mark.skipif(not exact_integers(), reason="no integer products on this processor")
def test_a_run_is_the_same_without_the_library_and_with_any_number_of_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def digest(name: str, count: int) -> str:
        with threads(count):
            train(run_config(tmp_path, out=str(tmp_path / name), base_dtype="int8", max_steps=2))
        return hashlib.sha256((tmp_path / name / "adapter_model.safetensors").read_bytes()).hexdigest()

    calls: list[str] = []
    find = native.native

    def counted(kind: str, dtype: str = "") -> object:
        calls.append(kind)
        return find(kind, dtype)

    monkeypatch.setattr(native, "native", counted)
    compiled = digest("compiled", 2)
    assert {"rounded", "scaled", "added"} <= set(calls)
    monkeypatch.setattr(native, "native", lambda kind, dtype="": None)
    monkeypatch.setattr(activations, "native", lambda kind: None)
    assert digest("plain", 1) == compiled


def test_whether_there_is_a_library_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def said(name: str, **settings: Any) -> tuple[bool, str]:
        record = train(run_config(tmp_path, out=str(tmp_path / name), prompts=[], max_steps=1, **settings))
        assert record.machine is not None
        assert record.machine.c_functions is native.is_compiled()
        assert f"{'with' if native.is_compiled() else 'without'} C functions" in version_line()
        return native.is_compiled(), "C compiler" in capsys.readouterr().err

    assert said("with", base_dtype="int8") == (True, False)
    monkeypatch.setattr(native, "_library", lambda: None)
    assert said("without", base_dtype="int8") == (False, True)


def test_without_a_library_there_is_no_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "_native.so").write_text("of another system")
    for name in ("absent.so", "_native.so"):
        monkeypatch.setattr(native, "LIBRARY", tmp_path / name)
        native.native.cache_clear()
        native._library.cache_clear()
        assert native.native("rounded", "float32") is None
    native.native.cache_clear()
    native._library.cache_clear()
    monkeypatch.undo()
    assert native._library.__wrapped__() is not None
    monkeypatch.setattr(native, "_VERSION", native._VERSION + 1)  # a library for other arguments
    assert native._library.__wrapped__() is None


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (1, 576, 192, 8), (3, 37, 41, 5), (16, 33, 65, 17), (2, 20, 6, 1025), (0, 8, 8, 2)]
)
def test_a_low_rank_product_is_added_to_rounding(
    dtype: torch.dtype, shape: tuple[int, int, int, int], monkeypatch: pytest.MonkeyPatch
):
    rows, wide, out, r = shape
    torch.manual_seed(0)
    x, y = torch.randn(rows, wide).to(dtype), torch.randn(rows, out).to(dtype)
    A, B = torch.randn(r, wide), torch.randn(out, r)
    exact = y.double() + 0.3 * (x.double() @ A.double().T @ B.double().T)
    by_definition: list[Any] = []
    monkeypatch.setattr(product, "plain_add_low_rank", lambda *given: by_definition.append(plain_add_low_rank(*given)))
    plain = y.clone()
    plain_add_low_rank(plain, x, A, B, 0.3)
    add_low_rank(y, x, A, B, 0.3)
    assert len(by_definition) == (r > 1024)
    if rows:
        assert relative_error(y, exact) <= 1e-6 + 1.5 * relative_error(plain, exact)


def test_a_low_rank_product_of_other_strides_is_added_by_the_definition():
    torch.manual_seed(0)
    x, y, A, B = torch.randn(6, 4).T, torch.zeros(4, 5), torch.randn(6, 3).T, torch.randn(2 * 3, 5).T[:, ::2]
    add_low_rank(y, x, A, B, 2.0)
    torch.testing.assert_close(y, 2 * x @ A.T @ B.T)


_bytes, _ints, _half = (partial(torch.ones, dtype=dtype) for dtype in (torch.uint8, torch.int8, torch.bfloat16))


def _rows_of(r: int, into: int, out: int) -> Tensor:
    layer = wrap(torch.nn.Linear(8, 6).requires_grad_(False)).eval()
    assert isinstance(layer, LoraLinear)
    pair = LowRank(torch.ones(2, into), torch.ones(out, r), 0.5, 0.0)
    return rows_product(layer, RowPairs([pair]), torch.ones(2, 1, 8), torch.ones(2, 1, 6))


def _attend(value: tuple[int, ...], mask: tuple[int, int] = (70, 75)) -> Tensor:
    tensors = _half(1, 4, 70, 8), _half(1, 2, 75, 8), _half(*value)
    visible = torch.ones(mask, dtype=torch.bool).tril(mask[1] - mask[0])[None, None]
    return attention.attention_forward(torch.nn.Module(), *tensors, visible)[0]


ONE, INT32, STRIDED = torch.ones, torch.int32, torch.arange(12.0)[::2]
MISFITS: dict[str, Callable[[], object]] = {
    "few rows: wide x": lambda: few_rows.few_rows_product(_half(2, 40), _half(6, 8), None),
    "few rows: long bias": lambda: few_rows.few_rows_product(_half(2, 8), _half(6, 8), _half(9)),
    "few rows: no memory": lambda: few_rows.few_rows_product(_half(2, 8), _half(6, 8).to("meta"), None),
    "few rows: no memory of bias": lambda: few_rows.few_rows_product(_half(2, 8), _half(6, 8), _half(6).to("meta")),
    "low rank: wide x": lambda: add_low_rank(ONE(2, 6), ONE(2, 40), ONE(2, 8), ONE(6, 2), 0.5),
    "low rank: out": lambda: add_low_rank(ONE(2, 6), ONE(2, 8), ONE(2, 8), ONE(9, 2), 0.5),
    "low rank: rows": lambda: add_low_rank(ONE(3, 6), ONE(2, 8), ONE(2, 8), ONE(6, 2), 0.5),
    "low rank: no memory": lambda: add_low_rank(ONE(2, 6), ONE(2, 8), ONE(2, 8), ONE(6, 2).to("meta"), 0.5),
    "rows: in": lambda: _rows_of(2, 9, 6),
    "rows: out": lambda: _rows_of(2, 8, 7),
    "norm: short weight": lambda: norms.generated_rms_norm(ONE(2, 8), ONE(6), 1e-5),
    "norm: no memory": lambda: norms.generated_rms_norm(ONE(2, 8), ONE(8).to("meta"), 1e-5),
    "attention: values": lambda: _attend((1, 2, 74, 8)),
    "attention: key heads": lambda: _attend((1, 1, 75, 8)),
    "attention: keys of the mask": lambda: _attend((1, 2, 75, 8), (70, 120)),
    "attention: queries of the mask": lambda: _attend((1, 2, 75, 8), (69, 75)),
    "rotation": lambda: rotated(ONE(2, 10), 16),
    "rounded": lambda: rounded(ONE(2, 10), 16),
    "dithered": lambda: dithered(ONE(2, 8), ONE(6)),
    "scaled: short scale": lambda: scaled(ONE(2, 8, dtype=INT32), ONE(2, 1), ONE(6), None, ONE(2, 8)),
    "scaled: short bias": lambda: scaled(ONE(2, 8, dtype=INT32), ONE(2, 1), ONE(8), ONE(6), ONE(2, 8)),
    "scaled: rows": lambda: scaled(ONE(2, 8, dtype=INT32), ONE(3, 1), ONE(8), None, ONE(2, 8)),
    "scaled: strided bias": lambda: scaled(ONE(2, 6, dtype=INT32), ONE(2, 1), ONE(6), STRIDED, ONE(2, 6)),
    "added": lambda: added(ONE(2, 8, dtype=INT32), ONE(2, 1), ONE(2, 1), ONE(6), None, ONE(2, 8)),
    "nf4: codes": lambda: nf4.nearest_codes(ONE(2, 64), _bytes(3, 32)),
    "nf4: blocks": lambda: nf4.decode(_bytes(2, 32), _bytes(2, 2), None, _ints(2, 128)),
    "nf4: out": lambda: nf4.decode(_bytes(2, 32), _bytes(2, 1), None, _ints(1, 64)),
    "nf4: scale": lambda: nf4.decode(_bytes(2, 32), _bytes(2, 1), ONE(3), ONE(2, 64)),
}


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:An output with one or more elements was resized")
@pytest.mark.parametrize("call", MISFITS.values(), ids=MISFITS)
def test_what_does_not_fit_together_never_reaches_a_c_function(
    call: Callable[[], object], monkeypatch: pytest.MonkeyPatch
):
    """The same happens as without the library: torch's error, or a right result."""

    def none(*_: object) -> None:
        pytest.fail("a C function was called")

    def outcome(found: object) -> type[Exception] | None:
        for module in (attention, few_rows, integer_passes, nf4, product, row_products, norms):
            monkeypatch.setattr(module, "native_for", lambda *_: found)
        monkeypatch.setattr(integer_passes, "native", lambda _: found)
        try:
            call()
        except Exception as error:
            return type(error)
        return None

    with threads(1):  # functions of few rows use one thread
        assert outcome(none) is outcome(None)
