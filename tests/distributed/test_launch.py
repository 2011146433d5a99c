import os
import sys
import time

import pytest
import torch
from torch import distributed

from tests.distributed.launch import ProcessesFailed, run_command, run_function


def scaled_sum(factor: int) -> tuple[int, float]:
    numbers = torch.tensor([1.0 + distributed.get_rank()])
    distributed.all_reduce(numbers)
    return distributed.get_rank(), factor * numbers.item()


def fail_on(rank: int) -> None:
    if distributed.get_rank() == rank:
        raise ValueError(f"told to fail on {rank}")
    distributed.barrier()


def wait_on(rank: int) -> None:
    if distributed.get_rank() != rank:
        distributed.barrier()
    time.sleep(1000)


def test_results_in_order_of_rank():
    assert run_function(scaled_sum, 10, processes=3) == [(0, 60.0), (1, 60.0), (2, 60.0)]


@pytest.mark.parametrize("rank", [0, 1])
def test_the_error_of_the_process_that_failed_first(rank: int):
    with pytest.raises(ProcessesFailed, match=rf"(?s)process {rank} of 2 .*fail_on.*told to fail on {rank}") as raised:
        run_function(fail_on, rank)
    assert raised.value.first == rank


def test_processes_that_wait_forever_are_ended_and_show_where():
    with pytest.raises(ProcessesFailed, match=r"(?s)still ran at the time limit.*wait_on") as raised:
        run_function(wait_on, 1, timeout=3)
    assert [one.code for one in raised.value.finished] == [-6, -6]


def test_a_command_has_the_environment_of_torchrun():
    code = "import os; print(os.environ['RANK'], os.environ['WORLD_SIZE'], os.environ['EXTRA'])"
    finished = run_command([sys.executable, "-c", code], environment={"EXTRA": "yes"})
    assert [one.stdout for one in finished] == ["0 2 yes\n", "1 2 yes\n"]
    assert "WORLD_SIZE" not in os.environ


def test_the_exit_status_of_a_command():
    code = "import os, sys; sys.exit('one is wrong' if os.environ['RANK'] == '1' else 0)"
    with pytest.raises(ProcessesFailed, match="process 1 of 2 ended with 1:\none is wrong") as raised:
        run_command([sys.executable, "-c", code])
    assert [one.code for one in raised.value.finished] == [0, 1]
