"""Signals end a run between two steps, with a checkpoint from which it is resumed exactly."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.runs import run_config
from tsugiki.errors import Interrupted
from tsugiki.io import ADAPTER_FILE, CHECKPOINTS, checkpoints
from tsugiki.training import EvaluationCallback, Gradients, RunRecord, RunScores, StopSignals, read_record, train

SETTINGS: dict[str, Any] = {"max_steps": 6, "eval_steps": 2, "save_steps": 100, "sample_steps": 2}


def send(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0)  # Python handles the signal before it goes on


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunRecord]:
    """A folder with a run that was not ended, and its record."""
    folder = tmp_path_factory.mktemp("signals")
    return folder, train(run_config(folder, "whole", **SETTINGS))


@pytest.mark.parametrize(
    ("place", "step", "number"),
    [
        pytest.param(*place, number, marks=[] if index == other else pytest.mark.slow)
        for index, place in enumerate((("step", 3), ("evaluation", 4), ("sample", 4)))
        for other, number in enumerate((signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    ],
)
def test_a_run_that_a_signal_ended_is_resumed_to_the_same_result(
    place: str, step: int, number: int, whole: tuple[Path, RunRecord], monkeypatch: pytest.MonkeyPatch
):
    folder, expected = whole
    config = run_config(folder, f"ended {place} {number}", **SETTINGS)
    out = Path(config.out)
    gradients, score, sample = Gradients.step, RunScores.score, EvaluationCallback._sample

    def in_step(self: Gradients, number_of_step: int, stop: bool = False) -> Any:
        if number_of_step == step - 1:
            send(number)
        return gradients(self, number_of_step, stop)

    def in_evaluation(self: RunScores, loop: Any, windows: Any, at: Any = None) -> Any:
        if loop.progress.step == step:
            send(number)
        return score(self, loop, windows, at)

    def in_sample(self: EvaluationCallback, loop: Any, at: Any = None) -> None:
        if loop.progress.step == step:
            send(number)
        sample(self, loop, at)

    with monkeypatch.context() as patch:
        if place == "step":
            patch.setattr(Gradients, "step", in_step)
        elif place == "evaluation":
            patch.setattr(RunScores, "score", in_evaluation)
        else:
            patch.setattr(EvaluationCallback, "_sample", in_sample)
        with pytest.raises(Interrupted, match=f"{signal.Signals(number).name}.*step {step} of 6") as stopped:
            train(config)
    assert stopped.value.number == number
    assert [path.name for path in checkpoints(out / CHECKPOINTS)] == [f"checkpoint-{step}"]
    resumed = train(config, resume=True)
    assert (out / ADAPTER_FILE).read_bytes() == (folder / "whole" / ADAPTER_FILE).read_bytes()
    assert resumed.evaluations == expected.evaluations
    assert resumed.samples == expected.samples
    assert resumed.loss_curve == expected.loss_curve


def test_the_handlers_are_restored():
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals(raises=True):
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_second_signal_does_not_wait():
    def receive_two() -> None:
        with StopSignals(raises=True) as signals, signals.deferred():
            send(signal.SIGTERM)
            assert signals.received == signal.SIGTERM
            send(signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        receive_two()


@pytest.mark.slow
def test_the_command_line_ends_with_the_status_of_the_signal(tmp_path: Path):
    config = run_config(tmp_path)
    out = tmp_path / "command"
    arguments = ["--model", config.model, "--data", *config.data, "--out", str(out), "--max-steps", "100000"]
    arguments += ["--block-size", "32", "--save-steps", "100000", "--eval-steps", "10"]
    run = subprocess.Popen(
        [sys.executable, "-m", "tsugiki", "train", *arguments],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        end = time.monotonic() + 120
        while not (out / "run.json").exists() or len(read_record(out).evaluations) < 2:  # that of the base comes first
            assert time.monotonic() < end
            time.sleep(0.05)
        run.send_signal(signal.SIGTERM)
        _, errors = run.communicate(timeout=60)
    finally:
        run.kill()
    assert run.returncode == 143
    assert re.search("SIGTERM.*checkpoint.*--resume", errors.splitlines()[-1])
