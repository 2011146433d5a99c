"""The parent process of a benchmark. Each entry runs in its own process, and only one process takes steps at a time.

    start         each entry loads its model and takes two steps that are not counted
    a round       each entry takes a block of consecutive steps while the others wait; the first two are not counted
    one by one    if memory does not hold all processes at once: each entry is loaded anew for each of its blocks

So other programs on the machine slow all entries down alike, and each entry runs as it does alone: after a change of
the process, memory that was returned to the system and caches are cold, which only the first steps of a block pay for.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

from tsugiki.bench.entries import BenchmarkEntry
from tsugiki.bench.process import EntryFailed, EntryProcess
from tsugiki.bench.workload import STEPS, WARM_UP, Workload
from tsugiki.language import _
from tsugiki.train import memory

_MARGIN = 1.15  # free memory that the next entry needs, relative to the largest peak so far


@dataclass
class Measurement:
    """What was measured for one entry. Memory in bytes, times in seconds."""

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
    """By dtype, after the latest round; empty unless this is the machine's limit."""
    problem: str | None = None
    """The reason why the entry was not measured."""

    @property
    def seconds(self) -> list[float]:
        """Of all counted steps."""
        return [seconds for block in self.blocks for seconds in block]

    def take_block(self, process: EntryProcess, warm_up: int, counted: int) -> None:
        """Let the process take consecutive steps, and add what the counted ones took.

        Raises:
            EntryFailed: the process ended during a step.
        """
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
    """Measure the entries, in the order given; one that fails has a `problem`.

    Args:
        entries: by name.
        workload: what each trains on.
        rounds: blocks of each entry.
        show: called with each line of progress.
        steps: counted steps in a block.
    """
    found = {
        name: Measurement(name, problem=f"not installed ({entry.install})" if entry.missing else None)
        for name, entry in entries.items()
    }
    installed = {name: entry for name, entry in entries.items() if not found[name].problem}
    measured = _all_at_once(installed, workload, rounds, steps, show)
    for one in measured or _one_by_one(installed, workload, rounds, steps, show):
        found[one.name] = one
    return list(found.values())


def _all_at_once(
    entries: Mapping[str, BenchmarkEntry], workload: Workload, rounds: int, steps: int, show: Callable[[str], None]
) -> list[Measurement] | None:
    """Keep all processes running, and let them take blocks in turn; None if memory does not hold all of them."""
    found = [Measurement(name) for name in entries]
    processes: dict[str, EntryProcess] = {}
    with ExitStack() as running:
        for one in found:
            if not _has_room(list(processes.values()), found):
                show(_("not enough memory for all entries at once: measuring them one by one"))
                return None
            with _recording_failure(one, show):
                processes[one.name] = _start(one, entries[one.name], workload, running, show)
        for number in range(rounds):
            show(_("round {number} of {rounds}").format(number=number + 1, rounds=rounds))
            for one in _without_problem(found):
                with _recording_failure(one, show):
                    one.take_block(processes[one.name], WARM_UP, steps)
    return found


def _one_by_one(
    entries: Mapping[str, BenchmarkEntry], workload: Workload, rounds: int, steps: int, show: Callable[[str], None]
) -> list[Measurement]:
    """Run one entry at a time, in a new process for each of its blocks."""
    found = [Measurement(name) for name in entries]
    for _turn in range(rounds):
        for one in _without_problem(found):
            with _recording_failure(one, show), ExitStack() as running:
                one.take_block(_start(one, entries[one.name], workload, running, show), 0, steps)
    return found


def _without_problem(found: Sequence[Measurement]) -> list[Measurement]:
    return [one for one in found if not one.problem]


def _start(
    one: Measurement, entry: BenchmarkEntry, workload: Workload, running: ExitStack, show: Callable[[str], None]
) -> EntryProcess:
    """Start the process and let it take the warm-up steps."""
    show(_("{name}: loading and warming up").format(name=one.name))
    process = running.enter_context(closing(EntryProcess(one.name, entry, workload)))
    one.take_block(process, WARM_UP, 0)
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
