"""Run independent tasks in parallel, with one thread each.

If an operation uses several threads, they all wait for the slowest one. When another program uses one of the cores,
small operations become many times slower for this reason. Independent tasks with one thread each do not wait for each
other.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Result = TypeVar("Result")


def run_in_threads(tasks: Sequence[Callable[[], Result]], threads_of_each: int | None = None) -> Iterator[Result]:
    """Run the tasks in parallel and yield their results in order.

    At most as many tasks as torch has threads run at once. Tasks start only a little ahead of the results that have
    been taken, so that results do not pile up in memory. The operations of a task use `threads_of_each` of torch's
    threads. With a fixed number, no bit of a result depends on how many threads torch has. None: they are divided among
    the tasks.
    """
    threads = torch.get_num_threads()
    workers = max(1, min(threads, len(tasks)))
    share = threads_of_each or max(1, threads // workers)
    if workers == 1 and share == threads:
        yield from (task() for task in tasks)
        return
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(share,))
    started: deque[Future[Result]] = deque()
    try:
        with pool:
            for task in tasks:
                started.append(pool.submit(task))
                if len(started) > workers:
                    yield started.popleft().result()
            while started:
                yield started.popleft().result()
    finally:
        torch.set_num_threads(threads)  # some libraries count threads for the whole process
