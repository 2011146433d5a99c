"""Runs that compute a part of the vocabulary in each step."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.errors import refused
from tests.runs import assert_resumes, run_config, uneven_blocks
from tests.tiny import store_of
from tsugiki.data import Blocks, pack
from tsugiki.io import ADAPTER_FILE
from tsugiki.model import IGNORE_INDEX
from tsugiki.training import RunRecord, train
from tsugiki.training.choose import output_head
from tsugiki.training.choose.output_head import is_target, kept_tokens


@pytest.fixture(autouse=True)
def few_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny model has 257 tokens."""
    monkeypatch.setattr(output_head, "_LIKELY_TOKENS", 40)
    monkeypatch.setattr(output_head, "_DRAWN_TOKENS", 40)


def softmax_of(record: RunRecord) -> str:
    return str(record.resolved_settings.get("softmax", "full"))


def test_by_default_it_is_sampled_where_the_part_is_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    for largest, asked, expected in ((None, None, "full"), (1.0, None, "sampled"), (1.0, "full", "full")):
        if largest:
            monkeypatch.setattr(output_head, "_MOST_COMPUTED", largest)
        record = train(run_config(tmp_path, f"{largest} {asked}", softmax=asked, max_steps=1))
        assert softmax_of(record) == expected
        assert ("--softmax full" in capsys.readouterr().err) == (expected == "sampled")


def test_a_resumed_run_draws_the_same_tokens(tmp_path: Path):
    assert softmax_of(assert_resumes(train, run_config(tmp_path, softmax="sampled"), 3)) == "sampled"


def test_the_rows_that_are_computed_at_once_change_nothing(tmp_path: Path):
    settings = {"softmax": "sampled", "base_dtype": "fp32", "batch_size": 4}
    for rows in (1, 4):
        train(run_config(tmp_path, str(rows), micro_batch_size=rows, **settings))
    one, four = (load_file(tmp_path / name / ADAPTER_FILE) for name in ("1", "4"))
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, four[name], rtol=1e-4, atol=1e-4)


def test_all_tokens_drawn_train_as_the_whole_vocabulary_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(output_head, "_DRAWN_TOKENS", 10_000)
    records = [train(run_config(tmp_path, name, softmax=name, base_dtype="fp32")) for name in ("full", "sampled")]
    one, other = ([point.loss for point in record.loss_curve] for record in records)
    assert one == pytest.approx(other, rel=1e-5)


def test_where_it_is_impossible_it_is_refused(tmp_path: Path):
    with refused("softmax sampled needs LoRA and an output layer that is frozen"):
        train(run_config(tmp_path, softmax="sampled", method="full"))


def test_targets_and_likely_tokens_are_kept():
    probabilities = torch.zeros(257)
    probabilities[[250, 251, 252]] = 0.1
    expected = sorted({*targets(uneven_blocks()), 250, 251, 252})
    assert kept_tokens(uneven_blocks(), probabilities, 3).tolist() == expected


def test_tokens_of_held_out_records_are_not_kept():
    blocks = pack(store_of([[1, 2, 3], [4, 5, 6], [7, 8, 9]]), np.array([0, 2]), 8, pad=0)
    assert is_target(blocks, 20).nonzero()[:, 0].tolist() == [2, 3, 8, 9]


def targets(blocks: Blocks) -> set[int]:
    labels = torch.cat([blocks[row]["labels"] for row in range(len(blocks))])
    return set(labels[labels != IGNORE_INDEX].tolist())
