"""Work on the cores of this machine without operations that wait for each other.

Several threads inside every operation meet at its end; where other work takes one of the cores, all wait for it, and
small operations become many times slower. So independent pieces of work run side by side with a thread each.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Result = TypeVar("Result")


def run_in_threads(tasks: Sequence[Callable[[], Result]]) -> list[Result]:
    """The results of the tasks, in order; as many run at once as torch has threads, which they share out."""
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
