"""Run a function in several processes of this machine, with the environment that torchrun gives them.

    sums = run_function(partial_sum, numbers)  # in two processes; their results in order of rank

The store in which they find each other belongs to the test's own process and has a port that the system chose, so that
two tests at once never take the same one.
"""

import faulthandler
import os
import pickle
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

import torch
from torch import distributed

from tests.processes import TIMEOUT, Process, start

_GRACE = 60.0  # seconds for the others to end after one has failed


def run_function(
    function: Callable[..., Any],
    *arguments: Any,
    processes: int = 2,
    timeout: float = TIMEOUT,
    environment: Mapping[str, str] | None = None,
) -> list[Any]:
    """Call a function in several processes that are one process group (gloo); return its results in order of rank.

    Args:
        function: defined in a module, so that it can be pickled; results are pickled as well.
        arguments: the same for every process.
        processes: their number.
        timeout: seconds after which all are ended, each with the stack of every thread in its output.
        environment: variables besides torchrun's.

    Raises:
        AssertionError: with the output of the process that failed first.
    """
    __tracebackhide__ = True
    store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    variables = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # process 0 does not open a store of its own at that port
        "TORCHELASTIC_RUN_ID": "none",
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        **(environment or {}),
    }
    with TemporaryDirectory() as folder:
        results = [Path(folder, f"{rank}.result") for rank in range(processes)]
        started = []
        try:
            for rank, result in enumerate(results):
                own = {**variables, "RANK": str(rank), "LOCAL_RANK": str(rank)}
                output = result.with_suffix(".output")
                started.append(start(_call, function, arguments, own, timeout, result, output=output))
            _wait(started, timeout)
        finally:
            for process in started:
                process.kill()
        failed = [process for process in started if process.process.exitcode != 0]
        if failed:
            # An error in one process breaks the connections of the others, which fail in turn, and write later.
            first = min(failed, key=lambda process: process.output.stat().st_mtime_ns)
            raise AssertionError(f"process {started.index(first)} of {processes} failed:\n{first.printed()}")
        return [pickle.loads(result.read_bytes()) for result in results]


def _wait(started: list[Process], timeout: float) -> None:
    """Wait for the processes; those that still run at the end of the time, or long after one has failed, are ended."""
    end = time.monotonic() + timeout
    while running := [process for process in started if process.process.is_alive()]:
        if any(process.process.exitcode for process in started):
            end = min(end, time.monotonic() + _GRACE)
        if time.monotonic() > end:
            for process in running:
                os.kill(process.pid, signal.SIGABRT)  # writes the stack of every thread
        running[0].process.join(0.5)


def _call(
    function: Callable[..., Any], arguments: tuple[Any, ...], variables: Mapping[str, str], timeout: float, result: Path
) -> NoReturn:
    faulthandler.enable()
    os.environ.update(variables)
    torch.set_num_threads(1)
    try:
        distributed.init_process_group("gloo", timeout=timedelta(seconds=timeout))
        result.write_bytes(pickle.dumps(function(*arguments)))
        distributed.destroy_process_group()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)  # at once, so that the others see this process fail first
    os._exit(0)
