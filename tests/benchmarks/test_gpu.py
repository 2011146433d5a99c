"""The command for a machine with a GPU, tried on the processor."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from benchmarks.figures import Figures
from benchmarks.guide_tables import read_results

from benchmarks import gpu
from tsugiki.errors import TsugikiError


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
    losses, profile = (Figures(**json.loads((tmp_path / name).read_text())) for name in ("losses.json", "profile.json"))
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
    with pytest.raises(TsugikiError, match="no accelerator.*--device cpu"):
        gpu.main([])


def test_wrong_losses_fail(monkeypatch: pytest.MonkeyPatch):
    found = {"cpu": {"fp32": [7.0, 6.0]}, "auto": {"fp32": [7.0, 6.0 * (1 + 2e-4)], "bf16": [7.01, 5.99]}}
    monkeypatch.setattr(gpu, "in_process", directly)
    monkeypatch.setattr(gpu, "run_losses", lambda device, dtypes, steps: found[device])
    assert [row[-1] for row in gpu.compare_losses("auto", 2, "").rows] == ["–", "no", "yes"]


def test_idle_time_of_a_device():
    assert gpu.busy_time([gpu.Span(5, 7), gpu.Span(0, 4), gpu.Span(1, 2), gpu.Span(3, 6)]) == 7

    def event(name: str, device: str, start: float, end: float, annotation: bool = False) -> SimpleNamespace:
        kind, times = SimpleNamespace(name=device), SimpleNamespace(start=start, end=end)
        return SimpleNamespace(name=name, device_type=kind, time_range=times, is_user_annotation=annotation)

    events = [
        event("aten::mm", "CPU", 0, 900_000),
        event("gemm", "CUDA", 100_000, 300_000),
        event("softmax", "CUDA", 300_000, 400_000),
        event("Optimizer.step", "CUDA", 0, 1_000_000, annotation=True),
        event("cudaStreamSynchronize", "CPU", 900_000, 1_000_000),
    ]
    averages = [
        SimpleNamespace(key="gemm", count=1, self_device_time_total=200_000),
        SimpleNamespace(key="softmax", count=1, self_device_time_total=100_000),
    ]
    profiler = SimpleNamespace(events=lambda: events, key_averages=lambda: averages)
    assert [row[1] for row in gpu.profile_rows(profiler, 1.0)] == [
        "1.000 s",
        "2",
        "70%",
        "1",
        "200.0 ms, 67%, 1 calls",
        "100.0 ms, 33%, 1 calls",
    ]


def test_entries_are_left_out_when_the_time_is_over():
    results = gpu.measure_entries({"unsloth": gpu.ENTRIES["unsloth"]}, gpu.Workload("embedded"), 1, 0.0, "")
    assert "--minutes" in (results.rows[0].problem or "")


def test_a_part_runs_in_its_own_process():
    assert gpu.in_process(os.getpid) != os.getpid()
