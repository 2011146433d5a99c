"""Signals end a run between two steps, with a checkpoint from which it is resumed exactly."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from tests.runs import run_config
from tsugiki.errors import Interrupted
from tsugiki.io import ADAPTER_FILE, CHECKPOINTS, checkpoints
from tsugiki.training import (
    EvaluationCallback,
    Gradients,
    RunRecord,
    RunScores,
    StopSignals,
    TrainingLoop,
    train,
)

SETTINGS: dict[str, Any] = {"max_steps": 6, "eval_steps": 2, "save_steps": 100, "sample_steps": 2}


def send(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0)  # Python handles the signal before it goes on


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunRecord]:
    """A folder with a run that was not ended, and its record."""
    folder = tmp_path_factory.mktemp("signals")
    return folder, train(run_config(folder, "whole", **SETTINGS))


def in_step(gradients: Gradients, number: int, *_: Any) -> bool:
    return number == 2


def after_step_4(owner: Any, loop: TrainingLoop, *_: Any) -> bool:
    return loop.progress.step == 4


PLACES: dict[str, tuple[Any, str, Callable[..., bool], int, int]] = {
    "step": (Gradients, "step", in_step, signal.SIGINT, 3),
    "evaluation": (RunScores, "score", after_step_4, signal.SIGTERM, 4),
    "sample": (EvaluationCallback, "_sample", after_step_4, signal.SIGHUP, 4),
}
"""The method that a signal interrupts, when, which signal, and the step after which the run ends."""


@pytest.mark.parametrize("place", PLACES)
def test_a_run_that_a_signal_ended_is_resumed_to_the_same_result(place: str, whole: tuple[Path, RunRecord]):
    folder, expected = whole
    config = run_config(folder, f"ended in {place}", **SETTINGS)
    owner, name, is_due, number, step = PLACES[place]
    method = getattr(owner, name)

    def interrupted(*given: Any) -> Any:
        if is_due(*given):
            send(number)
        return method(*given)

    said = f"{'Ctrl-C' if number == signal.SIGINT else signal.Signals(number).name}.*step {step} of 6"
    with mock.patch.object(owner, name, interrupted), pytest.raises(Interrupted, match=said) as stopped:
        train(config)
    assert stopped.value.number == number
    out = Path(config.out)
    assert [path.name for path in checkpoints(out / CHECKPOINTS)] == [f"checkpoint-{step}"]
    resumed = train(config, resume=True)
    assert (out / ADAPTER_FILE).read_bytes() == (folder / "whole" / ADAPTER_FILE).read_bytes()
    for what in ("evaluations", "samples", "loss_curve"):
        assert getattr(resumed, what) == getattr(expected, what), what


def test_a_second_signal_does_not_wait_and_the_handlers_are_restored():
    def receive_two() -> None:
        with StopSignals(raises=True) as signals, signals.deferred():
            send(signal.SIGTERM)
            assert signals.received == signal.SIGTERM
            send(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        receive_two()
    assert signal.getsignal(signal.SIGTERM) == before
