"""Tasks in threads: results in order, a number of threads for each, and torch's own number afterwards."""

import threading
from collections.abc import Iterator

import pytest
import torch

from tests.runs import one_thread
from tsugiki.training import run_in_threads


@pytest.fixture(autouse=True)
def _same_number_afterwards() -> Iterator[None]:
    with one_thread():
        yield


@pytest.mark.parametrize(
    ("threads", "tasks", "given", "expected"),
    [(1, 3, None, 1), (4, 2, None, 2), (4, 9, None, 1), (4, 1, None, 4), (4, 1, 1, 1), (2, 5, 1, 1), (1, 0, 1, 1)],
)
def test_threads_of_each_task(threads: int, tasks: int, given: int | None, expected: int):
    torch.set_num_threads(threads)
    found = list(run_in_threads([lambda n=n: (n, torch.get_num_threads()) for n in range(tasks)], given))
    assert found == [(number, expected) for number in range(tasks)]
    assert torch.get_num_threads() == threads


def test_an_error_in_a_task_is_raised_and_the_number_of_threads_restored():
    torch.set_num_threads(3)
    with pytest.raises(ZeroDivisionError):
        list(run_in_threads([threading.get_ident, lambda: 1 // 0, threading.get_ident], 1))
    assert torch.get_num_threads() == 3
