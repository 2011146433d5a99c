"""Pieces of an operation in threads of our own."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from tsugiki.lowbit import Int8Linear, Nf4Linear, QuantizedLayer, in_threads


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_results_come_in_order_from_threads_that_use_one_thread_each():
    torch.set_num_threads(3)

    def facts(item: int) -> tuple[int, int, str]:
        return item * item, torch.get_num_threads(), threading.current_thread().name

    squares, of_each, names = zip(*in_threads(facts, range(20)), strict=True)
    assert squares == tuple(i * i for i in range(20))
    assert set(of_each) == {1}
    assert threading.current_thread().name not in names
    assert torch.get_num_threads() == 3
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == 3, "of a new thread"


@pytest.mark.parametrize("threads", [1, 2])
def test_no_gradient_is_recorded_and_errors_are_raised(threads: int):
    torch.set_num_threads(threads)
    x = torch.ones(3, requires_grad=True)
    assert not any(y.requires_grad for y in in_threads(lambda part: part * 2, x.split(1)))
    with torch.inference_mode():
        y = torch.zeros(3)
        in_threads(lambda part: part.add_(1), y.split(1))  # only allowed in inference mode
    assert y.tolist() == [1, 1, 1]
    with pytest.raises(ZeroDivisionError):
        in_threads(lambda number: 1 // number, [1, 0])


@pytest.mark.parametrize("kind", [Int8Linear, Nf4Linear])
@pytest.mark.parametrize(
    ("dtype", "rows", "out", "into"), [(torch.float32, 300, 3100, 64), (torch.bfloat16, 65, 33, 100)]
)
@pytest.mark.usefixtures("integers")
def test_no_bit_of_a_product_depends_on_the_number_of_threads(
    kind: type[QuantizedLayer], dtype: torch.dtype, rows: int, out: int, into: int
):
    torch.manual_seed(0)
    layer = kind(torch.randn(out, into), nn.Parameter(torch.randn(out)), dtype)
    x, dy = torch.randn(rows, into).to(dtype), torch.randn(rows, out).to(dtype)

    def results(threads: int) -> tuple[Tensor, Tensor]:
        torch.set_num_threads(threads)
        return layer.product(x), layer.input_gradient(dy)

    expected = results(1)
    for threads in (2, 3):
        assert all(torch.equal(a, b) for a, b in zip(results(threads), expected, strict=True))


@pytest.mark.parametrize("kind", [Int8Linear, Nf4Linear])
@pytest.mark.parametrize(("dtype", "shape"), [(torch.float32, (3100, 65)), (torch.float16, (65, 64))])
def test_no_bit_of_a_quantised_weight_depends_on_the_number_of_threads(
    kind: type[QuantizedLayer], dtype: torch.dtype, shape: tuple[int, int]
):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)

    def codes(threads: int) -> dict[str, Tensor]:
        torch.set_num_threads(threads)
        return dict(kind(weight, None, dtype).named_parameters())

    expected, found = codes(1), codes(2)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
