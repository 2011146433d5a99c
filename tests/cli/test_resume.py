"""`tsugiki train --resume FOLDER`: settings from the record, what may change, from any directory, and after the end."""

import json
import os
import shlex
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.runs import TRAIN, run_config
from tests.tiny import TEXT, save_tiny
from tsugiki.cli.train import resumed_settings
from tsugiki.training import Gradients, new_record, read_record


def stop_in_second_step(monkeypatch: pytest.MonkeyPatch, signals: int = 1) -> None:
    """Press Ctrl-C."""
    gradients = Gradients.step

    def interrupted(self: Gradients, number: int, stop: bool = False) -> object:
        for _ in range(signals if number == 1 else 0):
            os.kill(os.getpid(), signal.SIGINT)
        return gradients(self, number, stop)

    monkeypatch.setattr(Gradients, "step", interrupted)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working directory of `interrupted`: always the same one, because records have its path."""
    return tmp_path_factory.mktemp("interrupted") / "place"


@pytest.fixture
def interrupted(place: Path, run, monkeypatch: pytest.MonkeyPatch) -> str:
    """What a run of 4 steps printed, which Ctrl-C has ended after step 2; its base and data have relative paths.

    The run is made once. Each test has a working directory as it was after it.
    """
    kept, printed = place.with_name("kept"), place.with_name("printed")
    if not kept.exists():
        place.mkdir()
        monkeypatch.chdir(place)
        save_tiny("base")
        Path("text.txt").write_text(TEXT)
        with pytest.MonkeyPatch.context() as patch:
            stop_in_second_step(patch)
            status, _, err = run("train", "--model", "base", *TRAIN, "--max-steps", "4", "--r", "4", "--prompts", "枝")
        assert status == 130
        printed.write_text(err)
        shutil.copytree(place, kept)
    shutil.rmtree(place)
    shutil.copytree(kept, place)
    monkeypatch.chdir(place)
    return printed.read_text()


def test_ctrl_c_names_the_command_that_continues_the_run(interrupted: str, run):
    line = interrupted.splitlines()[-1]
    assert "step 2 of 4" in line
    words = shlex.split(line.partition("to continue: ")[2])
    assert words == ["tsugiki", "train", "--resume", "run"]
    status, out, _ = run(*words[1:])
    assert (status, "perplexity" in out) == (0, True)
    record: Any = read_record(Path("run"))
    assert (record.status, record.config.max_steps, record.resolved_settings["steps"]) == ("finished", 4, 4)
    assert record.config.lora.r == 4


def test_a_run_is_continued_from_any_directory_and_by_the_name_of_its_record(
    interrupted: str, place: Path, run, monkeypatch: pytest.MonkeyPatch
):
    (place / "elsewhere").mkdir()
    monkeypatch.chdir(place / "elsewhere")
    assert run("train", "--resume", "../run/run.json")[0] == 0
    assert read_record(place / "run").status == "finished"
    assert list((place / "elsewhere").iterdir()) == []


def test_the_length_and_the_prompts_may_change_and_nothing_else(interrupted: str, run):
    status, _, err = run("train", "--resume", "run", "--learning-rate", "0.02")
    assert (status, err.count("\n")) == (2, 1)
    assert "learning_rate (was 0.01, now 0.02)" in err
    assert run("train", "--resume", "run", "--epochs", "1", "--prompts", "雨")[0] == 0
    record: Any = read_record(Path("run"))
    assert (record.config.max_steps, record.config.epochs, record.config.prompts) == (None, 1, ["雨"])
    assert record.training.steps > 4


@pytest.mark.slow
def test_a_finished_run_goes_on_with_the_schedule_of_a_longer_run(interrupted: str, run):
    resume = ("train", "--resume", "run")
    assert run(*resume)[0] == 0
    for more, status, said in (
        ((), 2, "after 4 steps"),
        (("--max-steps", "3"), 2, "has done 4 steps"),
        (("--max-steps", "8"), 0, "from step 4 to 8"),
    ):
        found, _, err = run(*resume, *more)
        assert (found, said in err, read_record(Path("run")).status) == (status, True, "finished")
    record: Any = read_record(Path("run"))
    assert (record.resolved_settings["steps"], record.training.steps) == (8, 8)
    rates = {point.step: point.learning_rate for point in record.loss_curve}
    assert rates[5] == pytest.approx(0.01 * 4 / 8)
    assert rates[8] == pytest.approx(0.01 / 8)
    assert [record.evaluations[place].step for place in (0, -1)] == [0, 8]


@pytest.mark.slow
def test_more_minutes_are_added_to_a_finished_run(interrupted: str, run, monkeypatch: pytest.MonkeyPatch):
    assert run("train", "--resume", "run")[0] == 0
    monkeypatch.setattr("tsugiki.training.run.prepare.rows_in_time", lambda *_: 32)
    assert run("train", "--resume", "run", "--minutes", "5")[0] == 0
    record: Any = read_record(Path("run"))
    assert record.training.steps == record.resolved_settings["steps"] > 4


@pytest.mark.slow
def test_the_old_form_continues_a_run(interrupted: str, run):
    status, _, err = run("train", "--model", "base", *TRAIN, "--max-steps", "4", "--resume")
    assert status == 0, err
    assert read_record(Path("run")).status == "finished"


def test_a_run_in_the_folder_is_kept_until_overwrite_replaces_it(interrupted: str, run, place: Path):
    arguments = ("train", "--model", "base", *TRAIN)
    status, _, err = run(*arguments)
    assert (status, err.count("\n")) == (2, 1)
    assert all(said in err for said in ("--out", "tsugiki train --resume run", "--overwrite"))
    (place / "run" / "notes.txt").write_text("mine")
    assert run(*arguments, "--overwrite", "--target-modules", "nosuch")[0] == 2
    assert read_record(place / "run").config.max_steps == 4
    assert run(*arguments, "--overwrite")[0] == 0
    record = read_record(place / "run")
    assert (record.status, record.config.max_steps) == ("finished", 2)
    assert (place / "run" / "notes.txt").read_text() == "mine"
    assert {path.name for path in (place / "run" / "checkpoints").iterdir()} == {"checkpoint-1", "checkpoint-2"}


def test_a_second_ctrl_c_stops_at_once(base: str, run, monkeypatch: pytest.MonkeyPatch):
    stop_in_second_step(monkeypatch, signals=2)
    status, _, err = run("train", "--model", "base", *TRAIN, "--max-steps", "4")
    assert status == 130
    assert "at once" in err.splitlines()[-1]
    assert not (Path("run") / "checkpoints" / "checkpoint-2").exists()


@pytest.mark.parametrize("damage", ["cut", "flip in format", "missing"])
def test_a_damaged_record_is_replaced_by_that_of_the_checkpoint(damage: str, interrupted: str, run):
    path = Path("run/run.json")
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        at = content.index(b"format")
        flipped = content[:at] + bytes([content[at] ^ 2]) + content[at + 1 :]
        path.write_bytes(content[:-20] if damage == "cut" else flipped)
    status, _, err = run("train", "--resume", "run")
    assert (status, sum("checkpoint-2" in line for line in err.splitlines())) == (0, 1), err
    record: Any = read_record(Path("run"))
    assert (record.status, record.config.max_steps, record.config.lora.r) == ("finished", 4, 4)


def test_a_setting_that_differs_from_the_checkpoint_is_refused(interrupted: str, run):
    path = Path("run/run.json")
    path.write_text(path.read_text().replace('"learning_rate": 0.01', '"learning_rate": 0.05'))
    status, _, err = run("train", "--resume", "run")
    assert (status, err.count("\n")) == (2, 1), err
    assert "learning_rate (was 0.01, now 0.05)" in err
    assert run("train", "--resume", "run", "--learning-rate", "0.01")[0] == 0


def test_a_run_that_began_with_a_smaller_adapter_keeps_its_rank(tmp_path: Path):
    (tmp_path / "adapter").mkdir()
    adapter = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["c_attn"], "task_type": "CAUSAL_LM"}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(adapter))
    config = run_config(tmp_path, start_from=str(tmp_path / "adapter"), lora={"r": 16})  # 16 is the default
    folder = Path(config.out)
    folder.mkdir()
    new_record(config.to_record()).write(folder)
    assert resumed_settings(folder, {}, None).lora.r == 16
