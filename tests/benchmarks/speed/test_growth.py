"""The measurement of how cost grows: what it skips, what it runs, and the table and plot of what was found."""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from benchmarks.figures import Figures
from benchmarks.speed.entries import BenchmarkEntry, load_function
from benchmarks.speed.growth import PANELS
from benchmarks.speed.runner import EntryFailed
from benchmarks.speed.workload import Workload

from benchmarks.speed import growth
from tsugiki.io import read_json

GB = 10**9


class Fake:
    """A process of which PEFT's takes 2 s for a step, and Tsugiki's 1 s."""

    started: list[tuple[str, BenchmarkEntry, Workload]]

    def __init__(self, name: str, entry: BenchmarkEntry, workload: Workload) -> None:
        self.started.append((name, entry, workload))
        if name == "PEFT" and workload.length == 8192:
            raise EntryFailed("out of memory: 3.00 GB more were needed")
        load_function(entry.function)  # it exists
        self.name, self.loaded, self.notes = name, GB, {"attention": "eager"} if name == "PEFT" else {}

    def step(self) -> dict[str, Any]:
        return {"seconds": 2.0 if self.name == "PEFT" else 1.0, "peak": 4 * GB if self.name == "PEFT" else 2 * GB}

    def close(self) -> None:
        """Nothing is to be closed."""


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    Fake.started = []
    monkeypatch.setattr(growth, "EntryProcess", Fake)

    def start(*arguments: str) -> list[tuple[str, BenchmarkEntry, Workload]]:
        Fake.started.clear()
        monkeypatch.setattr("sys.argv", ["growth", "--out", str(tmp_path / "out"), *arguments])
        growth.main()
        return list(Fake.started)

    return start


@pytest.mark.slow
def test_every_point_is_measured_once_with_both_tools(run, tmp_path: Path):
    started = run()
    points = {point for panel in PANELS.values() for point in panel}
    assert len(started) == 2 * len(points)
    assert len({(name, str(workload), str(entry.environment)) for name, entry, workload in started}) == len(started)
    assert run("--only", "threads") == [], "all of them are in points.json"
    svg = (tmp_path / "out" / "growth.svg").read_text(encoding="utf-8")
    assert "out of memory" in svg
    assert "メモリ不足" in (tmp_path / "out" / "growth.ja.svg").read_text(encoding="utf-8")
    ElementTree.fromstring(svg)
    figures = Figures(**read_json(tmp_path / "out" / "figures.json"))
    headers, rows = figures.table("en")
    assert len(rows) == len(points)
    assert all(len(row) == len(headers) == len(figures.headers["ja"]) for row in rows)
    assert ["smollm2-135m", "2 x 512", "8", "q, v", "2", "1,024", "512", "2.00", "2.00 GB", "4.00 GB", "0.50"] in rows
    longest = next(row for row in rows if row[1] == "1 x 8,192")
    assert longest[5:] == [*("8,192", "out of memory", "–"), *("2.00 GB", "out of memory", "–")]


@pytest.fixture
def without_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "_panels", lambda found: [])
    monkeypatch.setattr(growth, "plot", lambda panels, language: "")


def test_one_panel_and_what_its_processes_are_given(run, without_plots, tmp_path: Path):
    started = run("--only", "threads,rank")
    assert {entry.environment["OMP_NUM_THREADS"] for _, entry, _ in started} == {"1", "2"}
    assert {workload.r for *_, workload in started} == {1, 8, 32, 128, 256}
    attention = [entry.function.rpartition(":")[2] for name, entry, _ in started if name == "PEFT"]
    assert attention == ["peft_bf16"] + ["peft_bf16_eager"] * (len(attention) - 1), "it is tried once for a row length"
    assert len(read_json(tmp_path / "out" / "points.json")["points"]) == len(started)
