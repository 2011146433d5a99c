"""Compute the pieces of one operation in a thread pool of our own.

torch's operations share their work between OpenMP's threads, which are synchronised in every operation. Several small
operations on a piece take less time if one thread runs all of them, and C functions use one thread anyway.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from threading import Barrier
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def with_one_thread() -> Iterator[None]:
    """Let each operation of the processor use one thread within the block."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def in_threads(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Return what a function returns for each item, computed in as many threads as torch uses here.

    Gradients are not recorded. The function must not call `in_threads`, and its operations use one thread each.
    """
    threads = torch.get_num_threads()
    with torch.no_grad():
        if threads == 1 or len(items) < 2 or torch.compiler.is_compiling():
            return [function(item) for item in items]
        inference = torch.is_inference_mode_enabled()

        def call(item: Item) -> Result:
            with torch.inference_mode(inference), torch.no_grad():  # these modes are set for each thread
                return function(item)

        return list(_pool(os.getpid(), threads).map(call, items))


@cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Return the thread pool of a process; a forked process does not have its parent's threads."""
    started = Barrier(threads)

    def use_one_thread() -> None:
        torch.set_num_threads(1)
        # Without this call, the first operation would set the number that new threads begin with.
        torch.get_num_threads()
        started.wait()

    pool = ThreadPoolExecutor(threads, "tsugiki-pieces", initializer=use_one_thread)
    list(pool.map(lambda _: None, range(threads)))  # each of these starts a thread, and none ends before all have begun
    torch.set_num_threads(threads)  # the number that new threads begin with was set as well
    return pool
