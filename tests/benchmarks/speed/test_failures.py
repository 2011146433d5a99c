"""Entries that fail in processes of their own: one line for each, and the others are still measured."""

import os
from pathlib import Path

import pytest
from benchmarks.speed.entries import BenchmarkEntry
from benchmarks.speed.runner import EntryFailed, EntryProcess, Measurement, measure
from benchmarks.speed.workload import Workload

MODULE = """
import os, signal, sys

def trains(workload, barrier):
    print("what a library prints does not disturb the answers")
    while True:
        barrier.begin()
        barrier.end()

def cannot_load(workload, barrier):
    raise ValueError("no such layer\\nand a second line")

def torch_needs_too_much(workload, barrier):
    barrier.begin()
    # as torch.empty on a processor says it; importing torch would take most of the time of the test
    raise RuntimeError("[enforce fail at alloc_cpu.cpp:128] err == 0. DefaultCPUAllocator: "
                       "can't allocate memory: you tried to allocate 4000000000 bytes. Error code 12")

def is_killed(workload, barrier):
    barrier.begin()
    os.kill(os.getpid(), signal.SIGKILL)

def exits(workload, barrier):
    barrier.begin()
    print("the licence has expired", file=sys.stderr)
    sys.exit(3)
"""
FAILING = {
    "cannot_load": "ValueError: no such layer and a second line",
    "torch_needs_too_much": "out of memory: 4.00 GB more were needed",
    "is_killed": "killed by the system, probably because memory ran out",
    "exits": "exited with status 3: the licence has expired",
}


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "contenders.py").write_text(MODULE)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    return "contenders"


@pytest.mark.slow
def test_each_failure_is_one_line_and_the_others_are_measured(module: str):
    shown: list[str] = []
    names = [*FAILING, "trains"]
    entries = {name: BenchmarkEntry("", f"{module}:{name}") for name in names}
    entries |= {"absent": BenchmarkEntry("", f"{module}:trains", requires=("no_such_package",))}
    found: dict[str, Measurement] = {
        one.name: one for one in measure(entries, Workload("any"), 1, shown.append, steps=1)
    }
    assert {name: found[name].problem for name in FAILING} == FAILING
    assert [line for line in shown if line.startswith(tuple(FAILING)) and "loading" not in line] == [
        f"{name}: {problem}" for name, problem in FAILING.items()
    ]
    assert not any("\n" in line for line in shown)
    assert found["absent"].problem == "not installed (pip install -e '.[dev]')"
    assert (found["trains"].problem, len(found["trains"].seconds)) == (None, 1)


@pytest.mark.slow
def test_a_process_does_not_import_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for module in ("json", "torch"):
        (tmp_path / f"{module}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(EntryFailed, match="tsugiki.nothing"):
        EntryProcess("any", BenchmarkEntry("", "tsugiki.nothing:none"), Workload("any"))
    assert not (tmp_path / "ran").exists()
