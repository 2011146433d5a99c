"""Run a function or a command in several processes of this machine, with the environment that torchrun gives them.

    sums = run_function(partial_sum, numbers)                         # in two processes; their results in order of rank
    run_command([sys.executable, "-m", "tsugiki", "train", …])        # what each has printed, in order of rank

Processes are forked from a server that has already imported torch and transformers, which takes seconds. The store in
which they find each other belongs to the test's own process and has a port that the system chose, so that two tests
at once never take the same one.
"""

import faulthandler
import os
import pickle
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

import torch
from torch import distributed

from tests.processes import SERVER

TIMEOUT = 300.0
"""Seconds after which processes are taken to wait for each other forever; generous, since tests share a machine."""
_GRACE = 60.0  # seconds for the others to end after one has failed
_OUTPUT = ("stdout", "stderr")
_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Finished:
    """How one process ended."""

    code: int
    """Its exit status; negative: the number of the signal that ended it."""
    stdout: str
    stderr: str


class ProcessesFailed(AssertionError):
    """At least one process failed. The message has what the first of them wrote to standard error."""

    def __init__(self, finished: list[Finished], first: int, in_time: bool) -> None:
        code = finished[first].code
        reason = f"ended with {code}" if in_time or code != -signal.SIGABRT else "still ran at the time limit"
        super().__init__(f"process {first} of {len(finished)} {reason}:\n{finished[first].stderr}")
        self.finished = finished
        """All processes, in order of rank."""
        self.first = first
        """The rank of the one that failed first."""


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
        timeout: seconds after which all are ended, each with the stack of every thread in its `stderr`.
        environment: variables besides torchrun's.

    Raises:
        ProcessesFailed: the function raised an error in a process, or the time is over.
    """
    __tracebackhide__ = True
    with TemporaryDirectory() as folder:
        call = pickle.dumps((function, arguments))
        _run(_call, (call, timeout), Path(folder), processes, timeout, environment)
        return [pickle.loads((Path(folder) / f"{rank}.result").read_bytes()) for rank in range(processes)]


def run_command(
    command: Sequence[str],
    *,
    processes: int = 2,
    timeout: float = TIMEOUT,
    environment: Mapping[str, str] | None = None,
) -> list[Finished]:
    """Run a command in several processes; each makes the process group itself. The arguments are `run_function`'s.

    Raises:
        ProcessesFailed: an exit status is not 0, or the time is over.
    """
    __tracebackhide__ = True
    with TemporaryDirectory() as folder:
        return _run(_execute, (list(command),), Path(folder), processes, timeout, environment)


def _run(
    target: Callable[..., None],
    arguments: tuple[Any, ...],
    folder: Path,
    processes: int,
    timeout: float,
    environment: Mapping[str, str] | None,
) -> list[Finished]:
    __tracebackhide__ = True
    store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    variables = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # process 0 does not open a store of its own at that port
        "TORCHELASTIC_RUN_ID": "none",
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "OMP_NUM_THREADS": "1",
        "PYTHONFAULTHANDLER": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")])),
        **(environment or {}),
    }
    for rank in range(processes):
        for name in _OUTPUT:
            (folder / f"{rank}.{name}").touch()
    started = [
        SERVER.Process(target=_begin, args=(target, arguments, folder, rank, variables, os.getcwd()))
        for rank in range(processes)
    ]
    try:
        for process in started:
            process.start()
        in_time = _wait(started, timeout)
        failed = [rank for rank, process in enumerate(started) if process.exitcode != 0]
    finally:
        for process in started:
            if process.pid is not None:
                _end(process, signal.SIGKILL)
    finished = [
        Finished(process.exitcode or 0, *((folder / f"{rank}.{name}").read_text(errors="replace") for name in _OUTPUT))
        for rank, process in enumerate(started)
    ]
    if failed:
        # An error in one process breaks the connections of the others, which fail in turn, and write later.
        first = min(failed, key=lambda rank: (folder / f"{rank}.stderr").stat().st_mtime_ns)
        raise ProcessesFailed(finished, first, in_time)
    return finished


def _wait(started: list[BaseProcess], timeout: float) -> bool:
    """Wait for the processes; those that still run at the end of the time, or long after one has failed, are ended.

    Returns:
        Whether all ended by themselves.
    """
    end = time.monotonic() + timeout
    while running := [process for process in started if process.is_alive()]:
        if any(process.exitcode for process in started):
            end = min(end, time.monotonic() + _GRACE)
        if time.monotonic() > end:
            for process in running:
                _end(process, signal.SIGABRT)  # writes the stack of every thread
            return False
        connection.wait([process.sentinel for process in running], 0.5)
    return True


def _end(process: BaseProcess, number: signal.Signals) -> None:
    """Send a signal to a process and to those that it has started, and wait for its end."""
    assert process.pid is not None
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:  # it has ended, or has not begun
        process.kill()
    process.join(5)


def _begin(
    target: Callable[..., None],
    arguments: tuple[Any, ...],
    folder: Path,
    rank: int,
    variables: Mapping[str, str],
    work: str,
) -> None:
    """Begin a process: its output goes to files, and its environment is that of a process of torchrun."""
    os.setsid()
    for descriptor, name in enumerate(_OUTPUT, 1):
        file = os.open(folder / f"{rank}.{name}", os.O_WRONLY | os.O_APPEND)
        os.dup2(file, descriptor)
    os.environ.clear()  # the server has the environment of the test that it was started in
    os.environ.update(variables, RANK=str(rank), LOCAL_RANK=str(rank))
    os.chdir(work)
    target(*arguments, folder / f"{rank}.result")


def _call(pickled: bytes, timeout: float, result: Path) -> NoReturn:
    faulthandler.enable()
    torch.set_num_threads(1)
    try:
        function, arguments = pickle.loads(pickled)
        distributed.init_process_group("gloo", timeout=timedelta(seconds=timeout))
        result.write_bytes(pickle.dumps(function(*arguments)))
        distributed.destroy_process_group()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)  # at once, so that the others see this process fail first
    os._exit(0)


def _execute(command: list[str], result: Path) -> NoReturn:
    os.execvp(command[0], command)
