"""Whole runs of `tsugiki train --shard fsdp` on two gloo processes against runs of one process."""

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from tests.distributed.launch import run_function
from tests.files import json_of
from tests.runs import run_config, train_until
from tsugiki.io import ADAPTER_FILE, MODEL_FILE
from tsugiki.training import RunRecord, preview, train
from tsugiki.training.run.start import Start

# Five rows for two processes in micro-batches of one row: one process has a row more than the other.
SETTINGS: dict[str, Any] = {"base_dtype": "fp32", "max_steps": 4, "batch_size": 5, "micro_batch_size": 1}
SETTINGS |= {"save_steps": 2, "eval_steps": 2}
FULL: dict[str, Any] = {"method": "full", "base_dtype": None, "learning_rate": 1e-3}
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"lora": {"r": 4, "lora_dropout": 0.3, "target_modules": ["c_attn", "lm_head"]}},
    "prompt": {"method": "prompt-tuning", "method_config": {"num_virtual_tokens": 4}, "base_dtype": "int8"},
    "saved": {"lora": {"r": 4, "modules_to_save": ["ln_f", "lm_head"]}},
    "full": {**FULL, "compute_dtype": "fp32"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    run_config(folder)  # writes the base and the texts
    return folder


def train_each(folder: Path, runs: dict[str, dict[str, Any]], shard: str) -> list[RunRecord]:
    return [
        train(run_config(folder, f"{name}-{shard}", **{**SETTINGS, **settings}, shard=shard))
        for name, settings in runs.items()
    ]


def alone_and_sharded(folder: Path, runs: dict[str, dict[str, Any]]) -> tuple[list[RunRecord], ...]:
    """The records of these runs in one process, and those of each of two that share the weights."""
    alone = run_function(train_each, folder, runs, "none", processes=1)
    return *alone, *run_function(train_each, folder, runs, "fsdp")


def weights_of(out: Path) -> dict[str, Tensor]:
    return load_file(next(path for name in (ADAPTER_FILE, MODEL_FILE) if (path := out / name).exists()))


def assert_same_weights(one: Path, other: Path) -> None:
    found, expected = weights_of(one), weights_of(other)
    assert found.keys() == expected.keys()
    for key, weight in expected.items():
        if not key.endswith("c_attn.bias"):  # the bias of the keys has no gradient but rounding errors
            assert (found[key] - weight).norm() <= 1e-5 * weight.norm() + 1e-7, key


@pytest.mark.slow
def test_runs_in_shards_give_the_results_of_one_process(folder: Path):
    alone, sharded, others = alone_and_sharded(folder, METHODS)
    for name, record, expected, other in zip(METHODS, sharded, alone, others, strict=True):
        assert [p.loss for p in record.loss_curve] == pytest.approx([p.loss for p in expected.loss_curve], rel=1e-5)
        held_out = [entry.loss for entry in record.evaluations]
        assert held_out == pytest.approx([entry.loss for entry in expected.evaluations], rel=1e-5), name
        assert len(held_out) == 3
        assert record.samples == expected.samples != []
        assert other.evaluations == record.evaluations
        assert_same_weights(folder / f"{name}-fsdp", folder / f"{name}-none")
    one, other = (json_of(folder / f"full-{shard}" / "config.json") for shard in ("fsdp", "none"))
    assert one == other


@pytest.mark.slow
def test_the_best_step_of_an_adapter_is_kept_in_shards_too(folder: Path):
    settings = {"validation": "auto", "held_out": 0.5, "eval_steps": 1, "max_steps": 5}
    runs = {f"{name}-validated": {**METHODS[name], **settings} for name in ("lora", "full")}
    (expected, _), (lora, full), _ = alone_and_sharded(folder, runs)
    assert lora.kept_step == expected.kept_step
    assert [entry.loss for entry in lora.evaluations] == pytest.approx([e.loss for e in expected.evaluations], rel=1e-5)
    assert_same_weights(folder / "lora-validated-fsdp", folder / "lora-validated-none")
    assert full.kept_step == 5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lora", "full"])
def test_a_run_in_shards_is_resumed_without_and_again_in_shards(name: str, folder: Path):
    settings = {**SETTINGS, **METHODS[name], "max_steps": 6}
    train(run_config(folder, f"{name}-whole", **settings))
    for processes, shard, step in ((2, "fsdp", 2), (1, "none", 4), (2, "fsdp", None)):
        given = {**settings, "shard": shard}
        run_function(train_until, step, folder, f"{name}-moved", given, processes=processes)
    assert_same_weights(folder / f"{name}-moved", folder / f"{name}-whole")


def test_a_run_in_shards_says_that_the_output_head_has_no_adapter(folder: Path, monkeypatch: pytest.MonkeyPatch):
    said = "the output head gets no LoRA factors"
    named = {"lora": {"target_modules": ["c_attn"]}}
    assert not any(said in note for note in preview(run_config(folder, "alone"), rows=1).notes)
    monkeypatch.setattr(Start, "in_shards", True)  # the choice is the same with one process
    assert sum(said in note for note in preview(run_config(folder, "split"), rows=1).notes) == 1
    assert not any(said in note for note in preview(run_config(folder, "named", **named), rows=1).notes)


def test_one_process_has_nothing_to_split(folder: Path):
    train(run_config(folder, "one", shard="fsdp"))
    train(run_config(folder, "plain"))
    assert (folder / "one" / ADAPTER_FILE).read_bytes() == (folder / "plain" / ADAPTER_FILE).read_bytes()
