"""Two real processes that want the same folder: one has it, and the other says so in one line."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.processes import run_tsugiki, start, start_tsugiki
from tests.runs import TRAIN, short_texts, tiny_base
from tsugiki import TsugikiError
from tsugiki.io import ADAPTER_FILE, sole_use
from tsugiki.training import RunConfig, SweepConfig, TrainingLoop, sweep
from tsugiki.training import train as start_run


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command of a short run."""
    monkeypatch.chdir(tmp_path)
    return ["train", "--model", tiny_base(tmp_path), *TRAIN[2:], "--data", short_texts(tmp_path), "--held-out", "0.2"]


def run(base: str) -> None:
    start_run(RunConfig(model=base, data="texts", out="run", max_steps=1))


def run_several(base: str) -> None:
    settings = {"model": base, "data": "texts", "out": "runs", "settings": {"max_steps": 1}, "grid": {"r": [1, 2]}}
    sweep(SweepConfig.model_validate(settings))


@pytest.mark.slow
def test_a_second_run_in_the_folder_ends_with_one_line(train: list[str], tmp_path: Path):
    reached = tmp_path / "reached"
    first = start(_run_and_wait, train, 1, reached, output=tmp_path / "first.txt")
    try:
        first.wait_for(reached)
        in_use = f"run is in use by process {first.pid}"
        said_of = {"": "run already holds a run", "--resume": in_use, "--overwrite": in_use}
        others = [start_tsugiki([*train, *flag.split()], tmp_path / f"second{flag}.txt") for flag in said_of]
        for other, said in zip(others, said_of.values(), strict=True):
            status, printed = other.wait()
            assert status == 2
            assert printed.count("\n") == 1
            assert said in printed
    finally:
        first.kill()
    assert (tmp_path / "run" / ".lock.json").exists()
    with pytest.raises(SystemExit) as stop:
        run_tsugiki([*train, "--resume"])
    assert not stop.value.code
    assert (tmp_path / "run" / ADAPTER_FILE).exists()
    assert [path.name for path in (tmp_path / "run").rglob(".*")] == [".lock"]


@pytest.mark.parametrize(("out", "work"), [("run", run), ("runs", run_several)])
def test_a_folder_in_use_is_refused(out: str, work: Callable[[str], object], train: list[str], tmp_path: Path):
    in_use = pytest.raises(TsugikiError, match=f"{out} is in use by process {os.getpid()}")
    with sole_use(tmp_path / out), in_use:
        work(train[2])
    assert not (tmp_path / out).exists()


def _run_and_wait(command: list[str], step: int, reached: Path) -> None:
    """Run a command that trains; after a step, write the file `reached` and wait to be killed."""
    train_step = TrainingLoop.train_step

    def then_wait(loop: TrainingLoop, stop: bool = False) -> None:
        train_step(loop, stop)
        if loop.progress.step == step:
            reached.touch()
            signal.pause()

    TrainingLoop.train_step = then_wait  # type: ignore[method-assign]
    run_tsugiki(command)
