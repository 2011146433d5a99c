"""Checkpoints of a run: what they hold, and what happens when one is damaged."""

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from tests.errors import refused
from tests.files import json_of
from tests.runs import assert_resumes, interrupt, run_config, tiny_base
from tsugiki import load_adapter
from tsugiki.io import ADAPTER_FILE, CHECKPOINTS, MANIFEST_FILE, RECORD_FILE, checkpoints, read_manifest
from tsugiki.training import read_record, train


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run."""
    folder = tmp_path_factory.mktemp("checkpoints")
    train(run_config(folder))
    return folder


def test_a_checkpoint_is_an_adapter_folder_with_the_record_of_the_run_at_its_step(folder: Path):
    first, last = checkpoints(folder / "run" / CHECKPOINTS)
    load_adapter(AutoModelForCausalLM.from_pretrained(tiny_base(folder)), last)
    assert (last / ADAPTER_FILE).read_bytes() == (folder / "run" / ADAPTER_FILE).read_bytes()
    stored = json_of(folder / "run" / RECORD_FILE)
    record = read_manifest(last)["record"]
    for name in ("config", "base", "data", "versions", "loss_curve"):
        assert record[name] == stored[name], name
    for name in ("evaluations", "samples"):  # the last ones are made after the last checkpoint
        assert record[name] == stored[name][:-1], name
    assert record["status"] == "running"
    assert {sample["step"] for sample in read_manifest(first)["record"]["samples"]} == {0, 2}


def test_a_run_continues_from_the_checkpoint_before_a_damaged_one(folder: Path):
    damaged = run_config(folder, "damaged", save_steps=1)
    interrupt(train, damaged, 3)
    kept = folder / "damaged" / CHECKPOINTS
    optimizer = kept / "checkpoint-3" / "optimizer.safetensors"
    content = bytearray(optimizer.read_bytes())
    content[-1] ^= 1
    optimizer.write_bytes(content)
    with pytest.warns(UserWarning, match=r"checkpoint-3 is damaged: optimizer.*continues from checkpoint-2"):
        record = train(damaged, resume=True)
    assert (folder / "damaged" / ADAPTER_FILE).read_bytes() == (folder / "run" / ADAPTER_FILE).read_bytes()
    assert record.samples == read_record(folder / "run").samples
    assert sorted(path.name for path in kept.iterdir()) == ["checkpoint-3", "checkpoint-3.damaged", "checkpoint-4"]


def test_if_all_checkpoints_are_damaged_nothing_is_trained_and_nothing_is_changed(tmp_path: Path):
    config = run_config(tmp_path)
    interrupt(train, config, 3)
    (tmp_path / "run" / CHECKPOINTS / "checkpoint-2" / MANIFEST_FILE).unlink()
    with refused("checkpoint-2 is incomplete"):
        train(config, resume=True)
    assert (tmp_path / "run" / CHECKPOINTS / "checkpoint-2").is_dir()
    with refused("already holds a run"):
        train(config)


def test_a_run_whose_record_is_damaged_continues_with_the_record_in_its_checkpoint(folder: Path):
    cut = run_config(folder, "cut")
    interrupt(train, cut, 3)
    (folder / "cut" / RECORD_FILE).write_text("{")
    with pytest.warns(UserWarning, match=r"run\.json.*continues from checkpoint-2"):
        train(cut, resume=True)
    ours, theirs = read_record(folder / "cut"), read_record(folder / "run")
    assert ours.status == "finished"
    for name in ("evaluations", "samples", "loss_curve", "data", "base"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert (folder / "cut" / ADAPTER_FILE).read_bytes() == (folder / "run" / ADAPTER_FILE).read_bytes()


def test_a_point_of_the_loss_curve_may_span_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tsugiki.training.step.setup._LOSS_CURVE_POINTS", 2)
    record = assert_resumes(train, run_config(tmp_path, max_steps=6, eval_steps=6, prompts=[]), 2)
    assert [point.step for point in record.loss_curve] == [3, 6]
