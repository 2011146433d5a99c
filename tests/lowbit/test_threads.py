"""Pieces of an operation in threads of our own."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from tests.runs import one_thread, threads
from tsugiki.lowbit import Int8Linear, Nf4Linear, QuantizedLayer, in_threads


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    with one_thread():
        yield


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


@pytest.mark.parametrize("count", [1, 2])
def test_no_gradient_is_recorded_and_errors_are_raised(count: int):
    torch.set_num_threads(count)
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
    ("dtype", "rows", "out", "into"), [(torch.float32, 300, 3100, 65), (torch.float16, 65, 33, 100)]
)
@pytest.mark.usefixtures("integers")
def test_no_bit_of_codes_and_products_depends_on_the_number_of_threads(
    kind: type[QuantizedLayer], dtype: torch.dtype, rows: int, out: int, into: int
):
    torch.manual_seed(0)
    weight, bias = torch.randn(out, into).to(dtype), nn.Parameter(torch.randn(out))
    x, dy = torch.randn(rows, into).to(dtype), torch.randn(rows, out).to(dtype)

    def results(count: int) -> list[Tensor]:
        with threads(count):
            layer = kind(weight, bias, dtype)
            return [*layer.parameters(), layer.product(x), layer.input_gradient(dy)]

    expected = results(1)
    for count in (2, 3):
        assert all(map(torch.equal, results(count), expected))
