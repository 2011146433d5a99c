"""The order of the steps and what is measured, with fake processes."""

from typing import Any

import pytest

from tsugiki.bench import runner
from tsugiki.bench.entries import BenchmarkEntry
from tsugiki.bench.process import EntryFailed
from tsugiki.bench.runner import measure
from tsugiki.bench.workload import Workload

GB = 10**9


class Fake:
    """A process whose n-th step takes n seconds, and which logs its calls."""

    log: list[str]
    held: int
    failing: str

    def __init__(self, name: str, entry: BenchmarkEntry, workload: Workload) -> None:
        self.name, self.count = name, 0
        self.log.append(f"start {name}")
        if name == self.failing:
            raise EntryFailed("no luck")
        Fake.held += GB
        self.notes, self.loaded, self.resident = {"attention": "eager"}, GB, GB

    def step(self) -> dict[str, Any]:
        self.count += 1
        self.log.append(f"{self.name} {self.count}")
        if self.failing == f"{self.name} {self.count}":
            raise EntryFailed("no luck")
        return {"seconds": float(self.count), "peak": GB + self.count * 1000, "resident": GB}

    def close(self) -> None:
        Fake.held -= GB
        self.log.append(f"end {self.name}")


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    Fake.log, Fake.held, Fake.failing = [], 0, ""
    monkeypatch.setattr(runner, "EntryProcess", Fake)
    monkeypatch.setattr("tsugiki.bench.memory.available", lambda: 100 * GB)
    return Fake.log


def run(*names: str, rounds: int = 2) -> dict[str, runner.Measurement]:
    entries = {name: BenchmarkEntry("", "any:any", requires=("no_such",) * (name == "absent")) for name in names}
    return {one.name: one for one in measure(entries, Workload("any"), rounds, lambda line: None)}


def test_steps_in_turn_after_the_warm_up(log: list[str]):
    found = run("a", "b")
    assert log == [
        *("start a", "a 1", "a 2", "start b", "b 1", "b 2"),
        *("a 3", "b 3", "a 4", "b 4"),
        *("end b", "end a"),
    ]
    assert found["a"].seconds == found["b"].seconds == [3.0, 4.0]
    assert (found["a"].peak, found["a"].above_loaded, found["a"].loaded) == (GB + 4000, 4000, GB)
    assert found["a"].notes == {"attention": "eager"}


def test_entries_that_are_not_installed_are_not_started(log: list[str]):
    found = run("absent", "b")
    assert found["absent"].problem == "not installed (pip install 'tsugiki[bench]')"
    assert found["absent"].seconds == []
    assert "start absent" not in log
    assert found["b"].seconds == [3.0, 4.0]


@pytest.mark.parametrize("failing", ["a", "a 2", "a 3"])
def test_a_failed_entry_does_not_stop_the_others(failing: str, log: list[str]):
    Fake.failing = failing
    found = run("a", "b")
    assert found["a"].problem == "no luck"
    assert (found["b"].problem, found["b"].seconds) == (None, [3.0, 4.0])
    assert Fake.held == 0
    assert log.count("a 4") == 0


def test_one_by_one_if_memory_does_not_hold_all(log: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tsugiki.bench.memory.available", lambda: 5 * GB // 2 - Fake.held)
    found = run("a", "b", "c", rounds=3)
    assert log[:7] == ["start a", "a 1", "a 2", "start b", "b 1", "b 2", "end b"]
    ones = [f"{name} {count}" for name in "abc" for count in (1, 2, 3, 4)]
    assert [line for line in log[8:] if not line.startswith(("start", "end"))] == ones + [
        f"{name} {count}" for name in "abc" for count in (1, 2, 3)
    ]
    assert all(one.seconds == [3.0, 4.0, 3.0] for one in found.values())
    assert Fake.held == 0
