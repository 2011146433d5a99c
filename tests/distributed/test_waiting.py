"""What the main process does alone: the others wait as long as it takes, and read the same from `out` or nothing."""

import os
import re
import signal
import time
import warnings
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import distributed

from tests.distributed.launch import run_function
from tests.runs import loop_of, run_config
from tests.tiny import grafted, tiny_model
from tsugiki import LoraConfig, TsugikiError
from tsugiki.errors import Interrupted, OtherProcessError
from tsugiki.io import MANIFEST_FILE
from tsugiki.training import Callback, TrainingLoop, check_agreement, main_first, on_main, start_accelerator, train
from tsugiki.training.run import train_steps
from tsugiki.training.step import loop as loop_module
from tsugiki.training.tools import processes


def train_in_own_folder(folder: Path) -> str:
    """Train into a relative folder in a directory of this process, and return the error."""
    processes._SECONDS_UNTIL_SEEN = 1.0
    own = folder / os.environ["RANK"]
    own.mkdir()
    config = run_config(folder)
    os.chdir(own)
    with pytest.raises((TsugikiError, OtherProcessError)) as raised:
        train(config.model_copy(update={"out": "run"}))
    assert not list(own.iterdir())
    return f"{raised.type.__name__}: {raised.value}"


def test_a_folder_that_the_processes_do_not_share_is_refused_at_the_start(tmp_path: Path):
    run_config(tmp_path)
    first, second = run_function(train_in_own_folder, tmp_path)
    assert "process 1 does not find the run/.lock.json" in first
    assert second.startswith("OtherProcessError")


def restored(folder: Path, damaged: bool) -> tuple[bool, list[Path]]:
    """Restore a step whose checkpoint process 1 sees late; `damaged`: process 0 finds it damaged."""
    accelerator = start_accelerator("cpu")
    loaded: list[Path] = []
    looked, content = iter([None, None]), processes._content

    def late(file: Path) -> bytes | None:
        return next(looked, content(file)) if accelerator.process_index else content(file)

    def read(checkpoint: Path) -> dict[str, Any]:
        if damaged or accelerator.process_index:
            raise TsugikiError("damaged")
        return {}

    warnings.simplefilter("ignore")
    changed: Any = train_steps  # this process ends with the function
    processes._content = late
    changed.read_manifest, changed.load_trained = read, lambda model, checkpoint: loaded.append(checkpoint)
    return train_steps._restore(accelerator, SimpleNamespace(), folder, 2), loaded  # type: ignore[arg-type]


@pytest.mark.parametrize("damaged", [False, True])
def test_all_processes_restore_the_step_that_the_main_one_finds_intact(damaged: bool, tmp_path: Path):
    (tmp_path / "checkpoint-2").mkdir()
    (tmp_path / "checkpoint-2" / MANIFEST_FILE).write_text("{}")
    for found in run_function(restored, tmp_path, damaged):
        assert found == ((False, []) if damaged else (True, [tmp_path / "checkpoint-2"]))


def wait_for_the_main_process() -> list[int]:
    """Wait for longer than the limit of the default group."""
    distributed.distributed_c10d._set_pg_timeout(timedelta(seconds=1), distributed.group.WORLD)
    accelerator = start_accelerator("cpu")

    def slow(number: int) -> int:
        time.sleep(2.5)
        return number

    found = [on_main(accelerator, lambda: slow(1))]
    found.append(main_first(accelerator, lambda: slow(2)))  # the main process waits for the other, too
    check_agreement(accelerator, {"one": 1})
    return found


def test_the_main_process_may_take_longer_than_the_limit_of_the_gradients():
    assert run_function(wait_for_the_main_process) == [[1, 2], [1, 2]]


def signalled(folder: Path) -> str:
    """Train as on an accelerator until process 1 gets a signal at step 6; return the message of the end."""
    accelerator = start_accelerator("cpu")
    index = accelerator.process_index
    model = grafted(tiny_model("gpt2", vocab_size=257), LoraConfig(r=2))
    config = run_config(folder, learning_rate=1e-3, max_steps=100_000, save_steps=100_000)
    made = loop_of(config, model, accelerator=accelerator)
    made.log_steps = 100_000
    shown: Any = SimpleNamespace(
        device=SimpleNamespace(type="cuda"), num_processes=2, is_main_process=index == 0, log=lambda *_, **__: None
    )
    made.accelerator = shown
    changed: Any = loop_module  # this process ends with the function
    changed._SECONDS_BETWEEN = 0.1
    now = {"monotonic": lambda: time.monotonic() * (1 + 10 * index), "perf_counter": time.perf_counter}
    changed.time = SimpleNamespace(**now)

    class Signal(Callback):
        def on_step_end(self, loop: TrainingLoop) -> None:
            if index and loop.progress.step == 6:
                os.kill(os.getpid(), signal.SIGTERM)

    made.callbacks.append(Signal())
    with pytest.raises(Interrupted) as stopped:
        made.run()
    return str(stopped.value)


def test_a_signal_ends_all_processes_after_the_same_step_however_rarely_losses_are_logged(tmp_path: Path):
    run_config(tmp_path)
    first, second = run_function(signalled, tmp_path)
    step = re.search(r"step (\d+) of 100000", first)
    assert step, first
    assert first == second
    assert 6 < int(step[1]) < 1000
