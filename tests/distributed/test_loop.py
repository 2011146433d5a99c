"""Runs of several gloo processes give the results of one process, and are resumed on another number of processes."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.distributed.launch import ProcessesFailed, run_command, run_function
from tests.runs import interrupt, run_config
from tests.training.run import test_keep_best
from tests.training.run.test_preference_runs import pairs_of
from tsugiki.io import ADAPTER_FILE, MODEL_FILE
from tsugiki.training import RunRecord, read_record, train

METHODS: dict[str, dict[str, Any]] = {
    "lora": {"lora": {"r": 4, "lora_dropout": 0.0}},
    "lora, dropout": {"lora": {"r": 4, "lora_dropout": 0.3, "target_modules": ["c_attn", "lm_head"]}},
    "lora, bf16": {"base_dtype": "bf16", "micro_batch_size": 2, "lora": {"r": 4, "lora_dropout": 0.3}},
    "dora": {"method": "dora", "lora": {"r": 4}},
    "prompt": {"method": "prompt-tuning", "method_config": {"num_virtual_tokens": 4}, "learning_rate": 1e-2},
    "bitfit": {"method": "bitfit"},
    "preference": {"preference": "dpo", "block_size": 64, "lora": {"r": 4}},
    "full": {"method": "full", "base_dtype": None, "learning_rate": 1e-3, "compute_dtype": "fp32"},
}
SETTINGS: dict[str, Any] = {
    "base_dtype": "fp32",
    "max_steps": 5,
    "batch_size": 6,
    "eval_steps": 5,
    "prompts": [],
    "save_steps": 5,
}


@dataclass(frozen=True)
class Result:
    losses: list[float]
    held_out: list[float]
    tokens: int
    weights: dict[str, Tensor]


def settings(folder: Path, name: str, processes: int) -> Any:
    data = {"data": pairs_of(folder)} if name == "preference" else {}
    return run_config(folder, f"{name} on {processes}", **{**SETTINGS, **METHODS[name], **data})


def train_all(folder: Path, processes: int) -> list[RunRecord]:
    """Train with every method; each process returns its records."""
    return [train(settings(folder, name, processes)) for name in METHODS]


def results(folder: Path, processes: int) -> dict[str, Result]:
    records = run_function(train_all, folder, processes, processes=processes)
    found = {}
    for name, record in zip(METHODS, records[0], strict=True):
        out = Path(record.config.out or "")
        weights = load_file(out / (MODEL_FILE if name == "full" else ADAPTER_FILE))
        losses = [point.loss for point in record.loss_curve]
        assert record.training is not None
        held_out = [entry.loss for entry in record.evaluations]
        found[name] = Result(losses, held_out, record.training.tokens, weights)
        assert record.machine is not None
        assert record.machine.processes == processes
    for others in records[1:]:
        assert [record.evaluations for record in others] == [record.evaluations for record in records[0]]
        assert [record.loss_curve for record in others] == [record.loss_curve for record in records[0]]
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    run_config(folder)  # writes the base and the texts
    return folder


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[str, Result]:
    return results(folder, 1)


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_several_processes_give_the_losses_and_the_weights_of_one(
    processes: int, folder: Path, alone: dict[str, Result]
):
    together = results(folder, processes)
    for name, found in together.items():
        expected = alone[name]
        assert found.tokens == expected.tokens
        assert found.losses == pytest.approx(expected.losses, rel=1e-5), name
        assert found.held_out == pytest.approx(expected.held_out, rel=1e-5), name
        for key, weight in expected.weights.items():
            ours, theirs = (
                # The bias of the keys does not change the attention. Adam makes steps of the rounding errors in its
                # gradient, which is 0.
                torch.cat([part for number, part in enumerate(bias.chunk(3)) if number != 1])
                if key.endswith("c_attn.bias")
                else bias
                for bias in (found.weights[key], weight)
            )
            assert (ours - theirs).norm() <= 1e-5 * theirs.norm() + 1e-7, (name, key)


def resumed(folder: Path, step: int | None) -> None:
    """Start or resume a run, and end it before `step`; None: at its end."""
    config = run_config(folder, "moved", **{**SETTINGS, "max_steps": 6, "save_steps": 2, **METHODS["lora, dropout"]})
    resume = (Path(config.out) / "run.json").exists()
    if step is None:
        train(config, resume=resume)
    else:
        interrupt(lambda settings: train(settings, resume=resume), config, step)


@pytest.mark.slow
def test_a_run_is_resumed_on_another_number_of_processes(folder: Path):
    whole = run_config(folder, "whole", **{**SETTINGS, "max_steps": 6, "save_steps": 2, **METHODS["lora, dropout"]})
    expected = train(whole)
    for processes, step in ((2, 2), (1, 4), (4, None)):
        run_function(resumed, folder, step, processes=processes)
    ours = load_file(folder / "moved" / ADAPTER_FILE)
    for key, weight in load_file(folder / "whole" / ADAPTER_FILE).items():
        assert (ours[key] - weight).norm() <= 1e-5 * weight.norm(), key

    moved = read_record(folder / "moved")
    assert [point.step for point in moved.loss_curve] == [1, 2, 3, 4, 5, 6]
    assert [p.loss for p in moved.loss_curve] == pytest.approx([p.loss for p in expected.loss_curve], rel=1e-5)
    assert moved.training is not None
    assert expected.training is not None
    assert moved.training.tokens == expected.training.tokens


def spoiled(folder: Path) -> RunRecord:
    return train(test_keep_best.config(folder, "spoiled", **test_keep_best.BREAKING))


@pytest.mark.slow
def test_all_processes_keep_the_start_if_no_step_is_better(folder: Path):
    records = run_function(spoiled, folder)
    assert [record.kept_step for record in records] == [0, 0]
    assert records[0].evaluations[0].loss == records[0].evaluations[1].loss


def train_one(folder: Path, name: str, **changes: Any) -> None:
    train(run_config(folder, name, **{**SETTINGS, **METHODS["lora, dropout"], **changes}))


def command(folder: Path, *arguments: str) -> list[str]:
    config = run_config(folder)
    data = ["--model", config.model, "--data", *config.data, "--max-steps", "2", "--block-size", "32"]
    return [sys.executable, "-m", "tsugiki", "train", *data, *arguments]


@pytest.mark.slow
def test_the_command_line_prints_once(folder: Path):
    first, second = run_command(command(folder, "--out", str(folder / "command"), "--prompts", "枝を"))
    assert "step 2" in first.stderr
    assert "report.html" in first.stdout
    assert (second.stdout, second.stderr) == ("", "")
    assert (folder / "command" / ADAPTER_FILE).is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "fact"),
    [
        (["--batch-size", "1"], "2 processes.* 1 row"),
        (["--held-out", "nowhere.txt"], "nowhere.txt"),
    ],
)
def test_bad_input_is_one_line_of_one_process(arguments: list[str], fact: str, folder: Path):
    with pytest.raises(ProcessesFailed) as failed:
        run_command(command(folder, "--out", str(folder / "bad"), *arguments))
    lines = [line for process in failed.value.finished for line in process.stderr.splitlines()]
    assert [process.code for process in failed.value.finished] == [2, 2], failed.value.finished
    assert len(lines) == 1, lines
    assert re.search(fact, lines[0])
    assert not (folder / "bad").exists()


AS_RANK = """
import os, sys
from tsugiki.cli.main import main
sys.argv = ["tsugiki", *sys.argv[1:], "--seed", os.environ["RANK"]]
main()
"""


@pytest.mark.slow
def test_processes_with_different_settings_end_with_one_line(folder: Path):
    arguments = command(folder, "--out", str(folder / "different"))[3:]
    with pytest.raises(ProcessesFailed) as failed:
        run_command([sys.executable, "-c", AS_RANK, *arguments])
    lines = [line for process in failed.value.finished for line in process.stderr.splitlines()]
    assert [process.code for process in failed.value.finished] == [2, 2], failed.value.finished
    assert len(lines) == 1, lines
    assert re.search("process 1 differs from process 0 in seed:", lines[0])
    assert not (folder / "different").exists()


def start(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    """`tsugiki train --processes 2`."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command(folder, *arguments), "--processes", "2"], stderr=subprocess.PIPE, text=True, env=environment
    )


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_others_and_the_run_goes_on_later(folder: Path):
    out = folder / "killed"
    arguments = ["--out", str(out), "--max-steps", "100000", "--save-steps", "1"]
    run = start(folder, *arguments)
    checkpoints = out / "checkpoints"
    until(lambda: list(checkpoints.glob("checkpoint-*")))
    children = psutil.Process(run.pid).children(recursive=True)
    second = next(child for child in children if child.environ().get("RANK") == "1")
    second.send_signal(signal.SIGKILL)
    _, errors = run.communicate(timeout=30)
    assert run.returncode == 2
    assert re.search("process 1 .*SIGKILL.*--resume", errors.splitlines()[-1])
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)


@pytest.mark.slow
def test_a_signal_to_both_processes_ends_the_run_with_a_checkpoint(folder: Path):
    out = folder / "ended"
    run = start(folder, "--out", str(out), "--max-steps", "900", "--save-steps", "900")
    until(lambda: '"step": 3' in read(out / "run.json"))
    run.send_signal(signal.SIGTERM)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 143
    last = errors.splitlines()[-1]
    assert sum("SIGTERM" in line or "signal" in line for line in errors.splitlines()) == 1, errors
    step = re.search(r"SIGTERM.* step (\d+) of 900.*--resume", last)
    assert step, errors
    assert [path.name for path in (out / "checkpoints").iterdir()] == [f"checkpoint-{step[1]}"]


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
