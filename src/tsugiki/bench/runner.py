"""The parent: each contender is a process of its own, and one at a time takes a step, round after round.

    warm-up      each loads its model and takes two steps that are not counted
    a round      each takes one step, while the others wait
    in turn      where memory does not hold all at once: each alone, from its start, twice over

So whatever else takes the machine's time meets all alike.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

from tsugiki.bench import memory
from tsugiki.bench.contenders import BenchmarkEntry
from tsugiki.bench.process import Failed, Process
from tsugiki.bench.work import WARM_UP, Work

_TURNS = 2
_MARGIN = 1.15  # of memory, over what another one needed


@dataclass
class Measured:
    """What came of one contender. Memory in bytes, times in seconds."""

    name: str
    notes: dict[str, str] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    """Of each counted step."""
    loaded: int | None = None
    """Memory before the first step: model and libraries."""
    peak: int | None = None
    """The most memory while it took its steps, warm-up among them."""
    above_loaded: int | None = None
    """What the steps needed on top."""
    limits: list[dict[str, Any]] = field(default_factory=list)
    """Of each round, where it is the limit that is measured."""
    problem: str | None = None
    """Why it was not measured."""

    def step(self, process: Process, counted: bool) -> None:
        """Let the process take a step, and remember what it took.

        Raises:
            Failed: it did not come through.
        """
        answer = process.step()
        self.notes, self.loaded = process.notes, process.loaded
        if answer["peak"]:
            self.peak = max(self.peak or 0, answer["peak"])
            if process.loaded:
                self.above_loaded = max(self.above_loaded or 0, answer["peak"] - process.loaded)
        if counted:
            self.seconds.append(answer["seconds"])
            self.limits += [answer["limits"]] if "limits" in answer else []


def measure(
    contenders: Mapping[str, BenchmarkEntry], work: Work, rounds: int, say: Callable[[str], None]
) -> list[Measured]:
    """Measure these contenders.

    Args:
        contenders: by the names that the worker knows.
        work: what each is to do.
        rounds: counted steps of each.
        say: told what goes on, a line each time.

    Returns:
        In the order given; what could not be measured has a `problem`.
    """
    found = {
        name: Measured(name, problem=f"not installed ({contender.install})" if contender.missing else None)
        for name, contender in contenders.items()
    }
    able = [name for name in found if not found[name].problem]
    for one in _by_turns(able, work, rounds, say) or _in_turn(able, work, rounds, say):
        found[one.name] = one
    return list(found.values())


def _by_turns(names: Sequence[str], work: Work, rounds: int, say: Callable[[str], None]) -> list[Measured] | None:
    """All at once, a step at a time; None where memory does not hold them."""
    found = [Measured(name) for name in names]
    processes: dict[str, Process] = {}
    with ExitStack() as running:
        for one in found:
            if not _room(list(processes.values()), found):
                say("memory does not hold all at once: each in turn")
                return None
            with _failing(one, say):
                processes[one.name] = _begin(one, work, running, say)
        for number in range(rounds):
            say(f"round {number + 1} of {rounds}")
            for one in _sound(found):
                with _failing(one, say):
                    one.step(processes[one.name], counted=True)
    return found


def _in_turn(names: Sequence[str], work: Work, rounds: int, say: Callable[[str], None]) -> list[Measured]:
    """Each alone, some steps at a time."""
    found = [Measured(name) for name in names]
    for turn in range(_TURNS):
        for one in _sound(found):
            with _failing(one, say), ExitStack() as running:
                process = _begin(one, work, running, say)
                for _ in range(turn, rounds, _TURNS):
                    one.step(process, counted=True)
    return found


def _sound(found: Sequence[Measured]) -> list[Measured]:
    return [one for one in found if not one.problem]


def _begin(one: Measured, work: Work, running: ExitStack, say: Callable[[str], None]) -> Process:
    """Start and warm up."""
    say(f"{one.name}: loading and warming up")
    process = running.enter_context(closing(Process(one.name, work)))
    for _ in range(WARM_UP):
        one.step(process, counted=False)
    return process


@contextmanager
def _failing(one: Measured, say: Callable[[str], None]) -> Iterator[None]:
    """What fails within is this one's problem alone."""
    try:
        yield
    except Failed as failure:
        one.problem = str(failure)
        say(f"{one.name}: {failure}")


def _room(processes: Sequence[Process], able: Sequence[Measured]) -> bool:
    """Whether one more fits that needs as much as the largest so far, with another one at its peak beside it."""
    free = memory.available()
    if free is None or not processes:
        return True
    peaks = {one.name: one.peak or 0 for one in able}
    growth = max(0, *(peaks[process.name] - (process.resident or 0) for process in processes))
    return free > _MARGIN * max(peaks.values()) + growth
