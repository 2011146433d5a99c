"""Run independent tasks in parallel, with one thread each.

If an operation uses several threads, they all wait for the slowest one. When another program uses one of the cores,
small operations become many times slower for this reason. Independent tasks with one thread each do not wait for each
other.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Result = TypeVar("Result")


def run_in_threads(tasks: Sequence[Callable[[], Result]]) -> list[Result]:
    """Run the tasks in parallel and return their results in order.

    At most as many tasks as torch has threads run at once, and torch's threads are divided among them.
    """
    threads = torch.get_num_threads()
    workers = min(threads, len(tasks))
    if workers < 2:
        return [task() for task in tasks]
    share = max(1, threads // workers)
    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(share,)) as pool:
            return list(pool.map(lambda task: task(), tasks))
    finally:
        torch.set_num_threads(threads)  # some libraries count threads for the whole process
