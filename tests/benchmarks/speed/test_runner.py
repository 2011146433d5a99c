"""The order of the steps and what is measured, with fake processes."""

from typing import Any

import pytest
from benchmarks.speed.entries import BenchmarkEntry
from benchmarks.speed.runner import EntryFailed, measure
from benchmarks.speed.workload import Workload

from benchmarks.speed import runner

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
    monkeypatch.setattr("tsugiki.training.tools.memory.available", lambda: 100 * GB)
    return Fake.log


def run(*names: str, rounds: int = 2) -> dict[str, runner.Measurement]:
    entries = {name: BenchmarkEntry("", "any:any") for name in names}
    return {one.name: one for one in measure(entries, Workload("any"), rounds, lambda line: None, steps=2)}


def test_blocks_in_turn_after_the_warm_up(log: list[str]):
    found = run("a", "b")
    assert log == [
        *("start a", "a 1", "a 2", "start b", "b 1", "b 2"),
        *("a 3", "a 4", "a 5", "a 6", "b 3", "b 4", "b 5", "b 6"),
        *("a 7", "a 8", "a 9", "a 10", "b 7", "b 8", "b 9", "b 10"),
        *("end b", "end a"),
    ]
    assert found["a"].blocks == found["b"].blocks == [[5.0, 6.0], [9.0, 10.0]]
    assert found["a"].seconds == [5.0, 6.0, 9.0, 10.0]
    assert (found["a"].peak, found["a"].above_loaded, found["a"].loaded) == (GB + 10_000, 10_000, GB)
    assert found["a"].notes == {"attention": "eager"}


@pytest.mark.parametrize("failing", ["a", "a 2", "a 5"])
def test_a_failed_entry_does_not_stop_the_others(failing: str, log: list[str]):
    Fake.failing = failing
    found = run("a", "b")
    assert found["a"].problem == "no luck"
    assert (found["b"].problem, found["b"].blocks) == (None, [[5.0, 6.0], [9.0, 10.0]])
    assert Fake.held == 0
    assert log.count("a 6") == 0


def test_one_by_one_if_memory_does_not_hold_all(log: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tsugiki.training.tools.memory.available", lambda: 5 * GB // 2 - Fake.held)
    found = run("a", "b", "c")
    assert log[:7] == ["start a", "a 1", "a 2", "start b", "b 1", "b 2", "end b"]
    steps = [line for line in log[8:] if not line.startswith(("start", "end"))]
    assert steps == [f"{name} {count}" for name in "abc" for count in (1, 2, 3, 4)] * 2
    assert all(one.blocks == [[3.0, 4.0]] * 2 for one in found.values())
    assert Fake.held == 0
