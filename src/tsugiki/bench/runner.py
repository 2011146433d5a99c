"""The parent process of a benchmark. Each entry runs in its own process, and only one process takes a step at a time.

    warm-up       each entry loads its model and takes two steps that are not counted
    a round       each entry takes one step while the others wait
    one by one    if memory does not hold all processes at once: each entry alone, in two passes of half the rounds

Other programs on the machine therefore slow all entries down alike.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

from tsugiki.bench import memory
from tsugiki.bench.entries import BenchmarkEntry
from tsugiki.bench.process import EntryFailed, EntryProcess
from tsugiki.bench.workload import WARM_UP, Workload

_PASSES = 2
_MARGIN = 1.15  # free memory that the next entry needs, relative to the largest peak so far


@dataclass
class Measurement:
    """What was measured for one entry. Memory in bytes, times in seconds."""

    name: str
    notes: dict[str, str] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    """For each counted step."""
    loaded: int | None = None
    """Memory before the first step: the model and the libraries."""
    peak: int | None = None
    """Peak memory during the steps, warm-up included."""
    above_loaded: int | None = None
    """The largest difference between a step's peak and the memory before the first step."""
    limits: dict[str, Any] = field(default_factory=dict)
    """By dtype, after the latest round; empty unless this is the machine's limit."""
    problem: str | None = None
    """The reason why the entry was not measured."""

    def step(self, process: EntryProcess, counted: bool) -> None:
        """Let the process take one step, and add what it took.

        Raises:
            EntryFailed: the process ended during the step.
        """
        answer = process.step()
        self.notes, self.loaded = process.notes, process.loaded
        if answer["peak"]:
            self.peak = max(self.peak or 0, answer["peak"])
            if process.loaded:
                self.above_loaded = max(self.above_loaded or 0, answer["peak"] - process.loaded)
        if counted:
            self.seconds.append(answer["seconds"])
            self.limits = answer.get("limits", {})


def measure(
    entries: Mapping[str, BenchmarkEntry], workload: Workload, rounds: int, show: Callable[[str], None]
) -> list[Measurement]:
    """Measure the entries, in the order given, for a number of counted rounds; one that fails has a `problem`.

    `show` is called with each line of progress.
    """
    found = {
        name: Measurement(name, problem=f"not installed ({entry.install})" if entry.missing else None)
        for name, entry in entries.items()
    }
    installed = {name: entry for name, entry in entries.items() if not found[name].problem}
    for one in _all_at_once(installed, workload, rounds, show) or _one_by_one(installed, workload, rounds, show):
        found[one.name] = one
    return list(found.values())


def _all_at_once(
    entries: Mapping[str, BenchmarkEntry], workload: Workload, rounds: int, show: Callable[[str], None]
) -> list[Measurement] | None:
    """Keep all processes running, and let them take steps in turn; None if memory does not hold all of them."""
    found = [Measurement(name) for name in entries]
    processes: dict[str, EntryProcess] = {}
    with ExitStack() as running:
        for one in found:
            if not _has_room(list(processes.values()), found):
                show("not enough memory for all entries at once: measuring them one by one")
                return None
            with _recording_failure(one, show):
                processes[one.name] = _start(one, entries[one.name], workload, running, show)
        for number in range(rounds):
            show(f"round {number + 1} of {rounds}")
            for one in _without_problem(found):
                with _recording_failure(one, show):
                    one.step(processes[one.name], counted=True)
    return found


def _one_by_one(
    entries: Mapping[str, BenchmarkEntry], workload: Workload, rounds: int, show: Callable[[str], None]
) -> list[Measurement]:
    """Run each entry alone for a part of the rounds, then each again for the rest."""
    found = [Measurement(name) for name in entries]
    for number in range(_PASSES):
        for one in _without_problem(found):
            with _recording_failure(one, show), ExitStack() as running:
                process = _start(one, entries[one.name], workload, running, show)
                for _ in range(number, rounds, _PASSES):
                    one.step(process, counted=True)
    return found


def _without_problem(found: Sequence[Measurement]) -> list[Measurement]:
    return [one for one in found if not one.problem]


def _start(
    one: Measurement, entry: BenchmarkEntry, workload: Workload, running: ExitStack, show: Callable[[str], None]
) -> EntryProcess:
    """Start the process and let it take the warm-up steps."""
    show(f"{one.name}: loading and warming up")
    process = running.enter_context(closing(EntryProcess(one.name, entry, workload)))
    for _ in range(WARM_UP):
        one.step(process, counted=False)
    return process


@contextmanager
def _recording_failure(one: Measurement, show: Callable[[str], None]) -> Iterator[None]:
    """Record a failed process as this entry's problem, so that the others are still measured."""
    try:
        yield
    except EntryFailed as failure:
        one.problem = str(failure)
        show(f"{one.name}: {failure}")


def _has_room(processes: Sequence[EntryProcess], found: Sequence[Measurement]) -> bool:
    """Whether another process fits in memory while one of the running ones is at its peak.

    The new process is assumed to need as much as the largest one so far.
    """
    free = memory.available()
    if free is None or not processes:
        return True
    peaks = {one.name: one.peak or 0 for one in found}
    growth = max(0, *(peaks[process.name] - (process.resident or 0) for process in processes))
    return free > _MARGIN * max(peaks.values()) + growth
