"""Read many mutated inputs in a child process, with limits of time and memory, and count what happens.

A reader may succeed, or raise a `TsugikiError` with one line of text. Everything else is a failure: another exception,
a message of several lines or more than 2,000 characters, more than 5 s of processor time, more than 500 MB of memory, a
crash, or a hang. Every case has its own random numbers, so one case can be repeated alone with `run_case`.

`TSUGIKI_CASES` sets the number of cases of a reader in the slow tests.
"""

import contextlib
import os
import random
import resource
import select
import shutil
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from tsugiki.errors import TsugikiError

Reader: TypeAlias = Callable[[random.Random, Path], object]
"""Writes a mutated input into an empty folder and reads it."""

LONG = int(os.environ.get("TSUGIKI_CASES", "20000"))
"""Cases of a reader in the slow tests."""

_SECONDS = 5
_MEMORY = 500_000_000
_HANG = 300  # wall time until a case counts as a hang; much more than _SECONDS, because the machine may be busy
_ADDRESS_SPACE = 4_000_000_000  # protects the machine; a reader fails at _MEMORY
_MESSAGE = 2000


@dataclass
class Tally:
    """What happened to the cases of one reader."""

    name: str
    outcomes: Counter[str] = field(default_factory=Counter)
    """`read`, `refused`, or the kind and place of a failure -> number of cases."""
    examples: dict[str, int] = field(default_factory=dict)
    """An outcome -> the number of its first case."""
    slowest: float = 0.0
    """Processor time of the slowest case in seconds."""
    memory: int = 0
    """The largest growth of the memory in bytes, over all cases of a child process."""

    def add(self, case: int, outcome: str, seconds: float, memory: int) -> None:
        self.slowest, self.memory = max(self.slowest, seconds), max(self.memory, memory)
        self.outcomes[outcome] += 1
        self.examples.setdefault(outcome, case)

    def __str__(self) -> str:
        lines = [f"{self.name}: slowest {self.slowest:.2f} s, {self.memory / 1e6:.0f} MB"]
        lines += [f"  {count:,} {one} (first: case {self.examples[one]})" for one, count in self.outcomes.most_common()]
        return "\n".join(lines)


def check(name: str, reader: Reader, cases: int, folder: Path) -> None:
    """Run the cases of a reader in child processes, print the tally, and fail if a case failed.

    A child that fails a limit is replaced.
    """
    tally = Tally(name)
    while tally.outcomes.total() < cases:
        _run_child(tally, reader, range(tally.outcomes.total(), cases), folder)
    print(f"\n{tally}")
    assert tally.outcomes.keys() <= {"read", "refused"}, str(tally)


def run_case(name: str, reader: Reader, case: int, folder: Path) -> object:
    """Run one case in this process, without limits."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return reader(random.Random(f"{name} {case}"), folder)


def _run_child(tally: Tally, reader: Reader, cases: range, folder: Path) -> None:
    """Run cases in a child process until they are done or one of them fails a limit."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException), open(send, "w", buffering=1) as lines:
            os.close(receive)
            _child(tally.name, reader, cases, folder, lines.write)
        os._exit(0)
    os.close(send)
    try:
        with open(receive) as answers:
            for case in cases:
                ready, _, _ = select.select([answers], [], [], _HANG)
                line = answers.readline() if ready else ""
                if not line:
                    how = "crash" if ready else f"hang of {_HANG} s"
                    tally.add(case, how, 0.0 if ready else _HANG, 0)
                    return
                seconds, memory, outcome = line.rstrip("\n").split(" ", 2)
                tally.add(case, outcome, float(seconds), int(memory))
                if "memory" in outcome:
                    return
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _child(name: str, reader: Reader, cases: range, folder: Path, write: Callable[[str], object]) -> None:
    with contextlib.suppress(ValueError):  # a lower limit than this is set already
        resource.setrlimit(resource.RLIMIT_AS, (_virtual_memory() + _ADDRESS_SPACE,) * 2)
    before = _peak_memory()
    for case in cases:
        start = time.process_time()
        outcome = _outcome(name, reader, case, folder)
        seconds, memory = time.process_time() - start, _peak_memory() - before
        if seconds > _SECONDS:
            outcome = f"slow, more than {_SECONDS} s, then: {outcome}"
        if memory > _MEMORY:
            outcome = f"memory, more than {_MEMORY / 1e6:.0f} MB, then: {outcome}"
        write(f"{seconds:.3f} {memory} {outcome}\n")


def _outcome(name: str, reader: Reader, case: int, folder: Path) -> str:
    try:
        run_case(name, reader, case, folder)
    except TsugikiError as error:
        message = str(error)
        if "\n" in message or not message:
            return "refused with a message that is not one line"
        return "refused" if len(message) <= _MESSAGE else f"refused with a message of more than {_MESSAGE} characters"
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in frames if f"{os.sep}tsugiki{os.sep}" in frame.filename] or list(frames)
        return f"{type(error).__name__} at {Path(ours[-1].filename).name}:{ours[-1].lineno}"
    return "read"


def _peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _virtual_memory() -> int:
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:  # not Linux
        return 0
