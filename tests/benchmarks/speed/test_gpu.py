"""The command for a machine with a GPU, tried on the processor."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.figures import Figures
from benchmarks.guide_tables import read_results

from benchmarks.speed import gpu
from tests.errors import assert_refused
from tests.files import json_of


def directly(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


@pytest.mark.slow
def test_everything_on_the_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(gpu, "in_process", directly)  # on a processor, one process can do everything
    for name in ("PYTHONPATH", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, os.environ.get(name, ""))  # so that the changes are taken back
    sizes = ["--model", "embedded", "--batch", "2", "--length", "16", "--rounds", "1", "--steps", "2"]
    gpu.main(["--device", "cpu", *sizes, "--entries", "tsugiki-no-dropout,unsloth", "--out", str(tmp_path)])
    losses, profile = (Figures(**json_of(tmp_path / name)) for name in ("losses.json", "profile.json"))
    assert [row[-1] for row in losses.rows] == ["–", "yes", "yes"]
    assert losses.rows[0][1:3] == losses.rows[1][1:3]
    assert losses.rows[1][1:3] != losses.rows[2][1:3], "bfloat16 rounds"
    assert any("mm" in row[0] for row in profile.rows)
    ours, other = read_results(tmp_path / "results.json").rows
    assert ours.tokens_per_second
    assert other.problem
    assert "--entries tsugiki-no-dropout,unsloth" in losses.command
    assert "step, with the profiler" in capsys.readouterr().out


@pytest.mark.skipif(torch.accelerator.is_available(), reason="this machine has an accelerator")
def test_without_an_accelerator_it_is_one_line():
    assert_refused("no accelerator.*--device cpu", gpu.main, [])


def test_wrong_losses_fail(monkeypatch: pytest.MonkeyPatch):
    found = {"cpu": {"fp32": [7.0, 6.0]}, "auto": {"fp32": [7.0, 6.0 * (1 + 2e-4)], "bf16": [7.01, 5.99]}}
    monkeypatch.setattr(gpu, "in_process", directly)
    monkeypatch.setattr(gpu, "run_losses", lambda device, dtypes, steps: found[device])
    assert [row[-1] for row in gpu.compare_losses("auto", 2, "").rows] == ["–", "no", "yes"]
