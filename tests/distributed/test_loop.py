"""Runs of several gloo processes give the results of one process, and are resumed on another number of processes."""

import contextlib
import io
import os
import re
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.distributed.launch import run_function
from tests.processes import Process, run_tsugiki, start_tsugiki
from tests.runs import run_config, train_until
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
SETTINGS: dict[str, Any] = {"base_dtype": "fp32", "max_steps": 5, "batch_size": 6, "eval_steps": 5, "save_steps": 5}
SETTINGS |= {"prompts": []}


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
        held_out = [entry.loss for entry in record.evaluations]
        found[name] = Result(losses, held_out, record.training.tokens, weights)
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
def test_several_processes_give_the_results_of_one(processes: int, folder: Path, alone: dict[str, Result]):
    together = results(folder, processes)
    for name, found in together.items():
        expected = alone[name]
        assert found.tokens == expected.tokens
        assert found.losses == pytest.approx(expected.losses, rel=1e-5), name
        assert found.held_out == pytest.approx(expected.held_out, rel=1e-5), name
        for key, weight in expected.weights.items():
            change = found.weights[key] - weight
            if key.endswith("c_attn.bias"):
                # The bias of the keys does not change the attention. Adam makes steps of the rounding errors in its
                # gradient, which is 0.
                change = change * torch.tensor([1.0, 0.0, 1.0]).repeat_interleave(len(weight) // 3)
            assert change.norm() <= 1e-5 * weight.norm() + 1e-7, (name, key)


MOVED = {**SETTINGS, "max_steps": 6, "save_steps": 2, **METHODS["lora, dropout"]}


@pytest.mark.slow
def test_a_run_is_resumed_on_another_number_of_processes(folder: Path):
    expected = train(run_config(folder, "whole", **MOVED))
    for processes, step in ((2, 2), (1, 4), (4, None)):
        run_function(train_until, step, folder, "moved", MOVED, processes=processes)
    ours = load_file(folder / "moved" / ADAPTER_FILE)
    for key, weight in load_file(folder / "whole" / ADAPTER_FILE).items():
        assert (ours[key] - weight).norm() <= 1e-5 * weight.norm(), key

    moved = read_record(folder / "moved")
    assert [point.step for point in moved.loss_curve] == [1, 2, 3, 4, 5, 6]
    assert [p.loss for p in moved.loss_curve] == pytest.approx([p.loss for p in expected.loss_curve], rel=1e-5)
    assert moved.training.tokens == expected.training.tokens


def arguments_of(folder: Path) -> list[str]:
    config = run_config(folder)
    return ["train", "--model", config.model, "--data", *config.data, "--block-size", "32"]


def end_at_once(folder: Path) -> tuple[Any, str]:
    """Call the command with another seed in each process, and return its status and what it printed."""
    said = io.StringIO()
    with pytest.raises(SystemExit) as stopped, contextlib.redirect_stderr(said):
        run_tsugiki([*arguments_of(folder), "--out", str(folder / "different"), "--seed", os.environ["RANK"]])
    return stopped.value.code, said.getvalue()


@pytest.mark.slow
def test_processes_with_different_settings_end_with_one_line(folder: Path):
    statuses, said = zip(*run_function(end_at_once, folder), strict=True)
    assert statuses == (2, 2)
    (line,) = "".join(said).splitlines()
    assert "process 1 differs from process 0 in " in line
    assert not (folder / "different").exists()


def begin(folder: Path, *arguments: str) -> Process:
    """`tsugiki train --processes 2`."""
    return start_tsugiki([*arguments_of(folder), "--processes", "2", *arguments], folder / "printed")


@pytest.mark.slow
def test_the_command_line_prints_once(folder: Path):
    out = folder / "command"
    status, printed = begin(folder, "--out", str(out), "--max-steps", "2", "--prompts", "枝を").wait()
    assert (status, (out / ADAPTER_FILE).is_file()) == (0, True), printed
    assert printed.count("report.html") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "fact"),
    [(["--batch-size", "1"], "2 processes.* 1 row"), (["--held-out", "nowhere.txt"], "nowhere.txt")],
)
def test_bad_input_is_one_line_of_one_process(arguments: list[str], fact: str, folder: Path):
    status, printed = begin(folder, "--out", str(folder / "bad"), *arguments).wait()
    assert (status, len(printed.splitlines())) == (2, 1), printed
    assert re.search(fact, printed)
    assert not (folder / "bad").exists()


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_others_and_the_run_goes_on_later(folder: Path):
    out = folder / "killed"
    run = begin(folder, "--out", str(out), "--max-steps", "100000", "--save-steps", "1")
    run.wait_for(out / "checkpoints" / "checkpoint-1")
    children = psutil.Process(run.pid).children(recursive=True)
    second = next(child for child in children if child.environ().get("RANK") == "1")
    second.send_signal(signal.SIGKILL)
    status, printed = run.wait(30)
    assert status == 2
    assert re.search("process 1 .*SIGKILL.*--resume", printed.splitlines()[-1])
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)


@pytest.mark.slow
def test_a_signal_to_both_processes_ends_the_run_with_a_checkpoint(folder: Path):
    out = folder / "ended"
    run = begin(folder, "--out", str(out), "--max-steps", "900", "--save-steps", "900", "--prompts", "枝を")
    run.wait_for(out / "run.json")
    os.kill(run.pid, signal.SIGTERM)
    status, printed = run.wait(60)
    assert status == 143
    said = [line for line in printed.splitlines() if "SIGTERM" in line or "signal" in line]
    assert said == printed.splitlines()[-1:]
    step = re.search(r"SIGTERM.* step (\d+) of 900.*--resume", said[0])
    assert [path.name for path in (out / "checkpoints").iterdir()] == [f"checkpoint-{step[1]}"]
