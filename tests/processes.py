"""Run functions and `tsugiki …` in other processes, which can be killed at any time.

Processes are forked from a server that has already imported torch and transformers, which takes seconds. They are not
forked from that of the test, because autograd does not work after a fork if it was used before.
"""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        "torch.distributed.fsdp",
        "transformers.modeling_utils",
        "tsugiki.training.run.stages",
        "tsugiki.cli.main",
        "tests.tiny",
    ]
)
TIMEOUT = 300.0
"""Seconds after which a process is taken to hang; generous, since tests share a machine."""


@dataclass
class Process:
    """A process that was started."""

    process: BaseProcess
    output: Path

    @property
    def pid(self) -> int:
        """The number of the process, and of the group of its children."""
        assert self.process.pid is not None
        return self.process.pid

    def wait(self, timeout: float = TIMEOUT) -> tuple[int, str]:
        """Wait for the end; returns the exit status (negative: the signal) and everything that was printed."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.kill()
            raise AssertionError(f"a process still ran after {timeout:.0f} s: {self.printed()}")
        return self.process.exitcode, self.printed()

    def kill(self) -> None:
        """Kill the process and its children, and wait for its end."""
        with suppress(ProcessLookupError):  # it has not begun, or has ended
            os.killpg(self.pid, signal.SIGKILL)
        self.process.kill()
        self.process.join()

    def printed(self) -> str:
        """Return what the process has printed so far."""
        return self.output.read_text(encoding="utf-8", errors="replace") if self.output.exists() else ""

    def wait_for(self, path: Path) -> None:
        """Wait until the process has written a file."""
        end = time.monotonic() + TIMEOUT
        while not path.exists():
            assert self.process.is_alive(), self.printed()
            assert time.monotonic() < end, self.printed()
            time.sleep(0.02)


def start(function: Callable[..., object], *arguments: Any, output: Path) -> Process:
    """Call a function in a new process, in this working directory and with these environment variables.

    Args:
        function: defined in a module, so that it can be pickled.
        arguments: its arguments.
        output: the file that gets what the process prints.
    """
    process = SERVER.Process(target=_begin, args=(function, arguments, output, dict(os.environ), os.getcwd()))
    process.start()
    return Process(process, output)


def start_tsugiki(arguments: Sequence[str], output: Path) -> Process:
    """Start `tsugiki …` in a new process."""
    return start(run_tsugiki, arguments, output=output)


def run_tsugiki(arguments: Sequence[str]) -> None:
    """Run `tsugiki …` in this process."""
    from tsugiki.cli.main import main

    sys.argv = ["tsugiki", *arguments]
    main()


def _begin(
    function: Callable[..., object],
    arguments: tuple[Any, ...],
    output: Path,
    environment: Mapping[str, str],
    folder: str,
) -> None:
    os.setpgid(0, 0)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number in (1, 2):
        os.dup2(file, number)
    os.environ.clear()  # the server has the environment of the test that it was started in
    os.environ.update(environment)
    os.chdir(folder)
    function(*arguments)
