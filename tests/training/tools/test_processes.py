"""The device of a run and its trackers, and commands that run in one process only."""

import pytest

from tests.errors import refused
from tsugiki.training import main_first, on_main, require_one_process, start_accelerator


def test_the_device_is_the_processor_where_there_is_no_other_and_one_that_is_not_there_is_named():
    assert start_accelerator().device.type == "cpu"
    for device in ("cuda", "mps", "xpu"):
        with refused(device):
            start_accelerator(device)


def test_a_tracker_that_is_unknown_or_not_installed_is_named():
    for tracker, said in (("sideways", "sideways.*tensorboard"), ("swanlab", "pip install swanlab")):
        with refused(said):
            start_accelerator("cpu", [tracker])


@pytest.mark.parametrize("engine", ["DEEPSPEED", "FSDP"])
def test_an_engine_that_accelerate_is_configured_for_is_refused(engine: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(f"ACCELERATE_USE_{engine}", "true")
    with refused(rf"(?i){engine}.*--shard fsdp"):
        start_accelerator("cpu")


def test_one_process_does_what_the_main_one_does():
    accelerator = start_accelerator("cpu")
    assert on_main(accelerator, lambda: 3) == 3
    calls: list[int] = []
    assert main_first(accelerator, lambda: calls.append(1) or len(calls)) == 1
    with pytest.raises(ZeroDivisionError):
        on_main(accelerator, lambda: 1 // 0)


def test_a_command_of_several_runs_needs_one_process(monkeypatch: pytest.MonkeyPatch):
    require_one_process("sweep")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with refused("sweep"):
        require_one_process("sweep")
