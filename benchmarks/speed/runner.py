"""The parent process of a benchmark. Each entry runs in its own process, and only one process takes steps at a time.

    start         each entry loads its model and takes two steps that are not counted
    a round       each entry takes a block of consecutive steps while the others wait; the first two are not counted
    one by one    if memory does not hold all processes at once: each entry is loaded anew for each of its blocks

So other programs on the machine slow down all entries equally, and each entry runs as if it were alone: after a change
of the process, the caches are cold and freed memory has to be allocated again, which affects only the first steps of a
block.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks import child_environment
from benchmarks.speed.entries import BenchmarkEntry
from benchmarks.speed.workload import STEPS, WARM_UP, Workload
from tsugiki.training.tools import memory

KILLED = "killed by the system, probably because memory ran out"
"""The reason for the failure of a process that was ended by SIGKILL."""
_SIGKILL = -9
_EXIT_TIMEOUT = 10  # seconds


class EntryFailed(Exception):
    """An entry's process failed; the message gives the reason."""


class EntryProcess:
    """A worker process that has loaded its model and waits for its first step; an `EntryFailed` says why it has not."""

    def __init__(self, name: str, entry: BenchmarkEntry, workload: Workload) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (close)
        self._process = subprocess.Popen(
            # -P: a json.py in the working directory is not imported.
            [sys.executable, "-P", "-m", "benchmarks.speed.worker", entry.function, json.dumps(asdict(workload))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**child_environment(), **entry.environment},
        )
        self.name = name
        ready = self._read_answer()
        self.notes: dict[str, str] = ready["ready"]
        self.loaded: int | None = ready["loaded"]
        """Memory before the first step, in bytes."""
        self.resident = self.loaded
        """Memory after the latest step, in bytes."""

    def step(self) -> dict[str, Any]:
        """Let the process take one step, and return its message (see `StepBarrier.end`)."""
        assert self._process.stdin
        try:
            print("step", file=self._process.stdin, flush=True)
        except BrokenPipeError as error:
            raise EntryFailed(self._exit_reason()) from error
        answer = self._read_answer()
        self.resident = answer["resident"]
        return answer

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin
        assert self._process.stdout
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(_EXIT_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    def _read_answer(self) -> dict[str, Any]:
        assert self._process.stdout
        try:
            line = self._process.stdout.readline()
        except BaseException:  # Ctrl-C during a step
            self._process.kill()
            raise
        answer: dict[str, Any] = json.loads(line) if line else {"error": self._exit_reason()}
        if "error" in answer:
            self.close()
            raise EntryFailed(answer["error"])
        return answer

    def _exit_reason(self) -> str:
        """Return the reason why the process ended without an error message."""
        status = self._process.wait()
        if status == _SIGKILL:
            return KILLED
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").split("\n")
        last = next((line for line in reversed(lines) if line.strip()), "")
        return f"exited with status {status}: {last.strip()[:300]}"


_MARGIN = 1.15  # free memory that the next entry needs, relative to the largest peak so far


@dataclass
class Measurement:
    """The measurement of one entry, with memory in bytes and times in seconds."""

    name: str
    notes: dict[str, str] = field(default_factory=dict)
    blocks: list[list[float]] = field(default_factory=list)
    """Seconds of each counted step, for each block."""
    loaded: int | None = None
    """Memory before the first step: the model and the libraries."""
    peak: int | None = None
    """Peak memory during the steps, warm-up included."""
    above_loaded: int | None = None
    """The largest difference between a step's peak and the memory before the first step."""
    limits: dict[str, Any] = field(default_factory=dict)
    """The machine's limits by dtype, after the latest round; empty for every entry except `LIMIT_ENTRY`."""
    problem: str | None = None
    """The reason why the entry was not measured."""

    @property
    def seconds(self) -> list[float]:
        """The times of all counted steps."""
        return [seconds for block in self.blocks for seconds in block]

    def take_block(self, process: EntryProcess, warm_up: int, counted: int) -> None:
        """Let the process take consecutive steps, and add a block with the times of the counted steps."""
        for _turn in range(warm_up):
            self._step(process)
        if counted:
            self.blocks.append([])
        for _turn in range(counted):
            self.blocks[-1].append(self._step(process))

    def _step(self, process: EntryProcess) -> float:
        answer = process.step()
        self.notes, self.loaded = process.notes, process.loaded
        if answer["peak"]:
            self.peak = max(self.peak or 0, answer["peak"])
            if process.loaded:
                self.above_loaded = max(self.above_loaded or 0, answer["peak"] - process.loaded)
        self.limits = answer.get("limits", {})
        seconds: float = answer["seconds"]
        return seconds


def measure(
    entries: Mapping[str, BenchmarkEntry],
    workload: Workload,
    rounds: int,
    show: Callable[[str], None],
    steps: int = STEPS,
) -> list[Measurement]:
    """Measure the entries, in the given order, in `rounds` blocks of `steps` counted steps.

    The measurement of an entry that fails has a `problem`.
    """
    found = {
        name: Measurement(name, problem=f"not installed ({entry.install})" if entry.missing else None)
        for name, entry in entries.items()
    }
    installed = {name: entry for name, entry in entries.items() if not found[name].problem}
    measured = _all_at_once(installed, workload, rounds, steps, show)
    for measurement in measured or _one_by_one(installed, workload, rounds, steps, show):
        found[measurement.name] = measurement
    return list(found.values())


def _all_at_once(
    entries: Mapping[str, BenchmarkEntry], workload: Workload, rounds: int, steps: int, show: Callable[[str], None]
) -> list[Measurement] | None:
    """Keep all processes running, and let them take blocks in turn; None if memory does not hold all of them."""
    found = [Measurement(name) for name in entries]
    processes: dict[str, EntryProcess] = {}
    with ExitStack() as running:
        for measurement in found:
            if not _has_room(list(processes.values()), found):
                show("not enough memory for all entries at once: measuring them one by one")
                return None
            name = measurement.name
            with _recording_failure(measurement, show):
                processes[name] = _start(measurement, entries[name], workload, running, show)
        for number in range(rounds):
            show(f"round {number + 1} of {rounds}")
            for measurement in _without_problem(found):
                with _recording_failure(measurement, show):
                    measurement.take_block(processes[measurement.name], WARM_UP, steps)
    return found


def _one_by_one(
    entries: Mapping[str, BenchmarkEntry], workload: Workload, rounds: int, steps: int, show: Callable[[str], None]
) -> list[Measurement]:
    """Run one entry at a time, in a new process for each of its blocks."""
    found = [Measurement(name) for name in entries]
    for _turn in range(rounds):
        for measurement in _without_problem(found):
            entry = entries[measurement.name]
            with _recording_failure(measurement, show), ExitStack() as running:
                measurement.take_block(_start(measurement, entry, workload, running, show), 0, steps)
    return found


def _without_problem(found: Sequence[Measurement]) -> list[Measurement]:
    return [measurement for measurement in found if not measurement.problem]


def _start(
    measurement: Measurement, entry: BenchmarkEntry, workload: Workload, running: ExitStack, show: Callable[[str], None]
) -> EntryProcess:
    """Start the process and let it take the warm-up steps."""
    show(f"{measurement.name}: loading and warming up")
    process = running.enter_context(closing(EntryProcess(measurement.name, entry, workload)))
    measurement.take_block(process, WARM_UP, 0)
    return process


@contextmanager
def _recording_failure(measurement: Measurement, show: Callable[[str], None]) -> Iterator[None]:
    """Record a failed process as this entry's problem, so that the others are still measured."""
    try:
        yield
    except EntryFailed as failure:
        measurement.problem = str(failure)
        show(f"{measurement.name}: {failure}")


def _has_room(processes: Sequence[EntryProcess], found: Sequence[Measurement]) -> bool:
    """Return whether another process fits in memory while one of the running processes is at its peak.

    The new process is assumed to need as much memory as the largest process so far.
    """
    free = memory.available()
    if free is None or not processes:
        return True
    peaks = {measurement.name: measurement.peak or 0 for measurement in found}
    growth = max(0, *(peaks[process.name] - (process.resident or 0) for process in processes))
    return free > _MARGIN * max(peaks.values()) + growth
