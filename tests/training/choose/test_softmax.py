"""Runs that compute a part of the vocabulary in each step."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.runs import assert_resumes, run_config, tiny_base, uneven_blocks
from tests.tiny import store_of
from tsugiki.data import Blocks, pack
from tsugiki.errors import TsugikiError
from tsugiki.io import ADAPTER_FILE
from tsugiki.model import IGNORE_INDEX
from tsugiki.training import RunRecord, run_all, train
from tsugiki.training.choose import softmax as sampled_softmax
from tsugiki.training.choose.softmax import is_target, kept_tokens


@pytest.fixture(autouse=True)
def few_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny model has 257 tokens."""
    monkeypatch.setattr(sampled_softmax, "_LIKELY", 40)
    monkeypatch.setattr(sampled_softmax, "_DRAWN", 40)


@pytest.fixture
def base(tmp_path: Path) -> str:
    return tiny_base(tmp_path)


def softmax_of(record: RunRecord) -> str:
    return str(record.resolved_settings.get("softmax", "full"))


@pytest.mark.usefixtures("base")
def test_by_default_it_is_sampled_where_the_part_is_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert softmax_of(train(run_config(tmp_path, out="large"))) == "full"
    assert "--softmax full" not in capsys.readouterr().err
    monkeypatch.setattr(sampled_softmax, "_LARGEST_SHARE", 1.0)
    assert softmax_of(train(run_config(tmp_path, out="small"))) == "sampled"
    assert "--softmax full" in capsys.readouterr().err
    assert softmax_of(train(run_config(tmp_path, out="asked", softmax="full"))) == "full"


@pytest.mark.usefixtures("base")
def test_a_resumed_run_draws_the_same_tokens(tmp_path: Path):
    assert softmax_of(assert_resumes(train, run_config(tmp_path, softmax="sampled"), 3)) == "sampled"


@pytest.mark.usefixtures("base")
def test_the_rows_that_are_computed_at_once_change_nothing(tmp_path: Path):
    results = []
    for rows in (1, 4):
        config = run_config(
            tmp_path, out=str(rows), softmax="sampled", base_dtype="fp32", micro_batch_size=rows, batch_size=4
        )
        train(config)
        results.append(load_file(Path(str(config.out)) / ADAPTER_FILE))
    for name, tensor in results[0].items():
        torch.testing.assert_close(tensor, results[1][name], rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("base")
def test_all_tokens_drawn_train_as_the_whole_vocabulary_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sampled_softmax, "_DRAWN", 10_000)
    results = []
    for softmax in ("full", "sampled"):
        record = train(run_config(tmp_path, out=softmax, softmax=softmax, base_dtype="fp32"))
        results.append([point.loss for point in record.loss_curve])
    assert results[0] == pytest.approx(results[1], rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "full"}, "softmax sampled needs LoRA and an output layer that is frozen"),
        ({"preference": "dpo"}, "preference cannot be combined with softmax"),
    ],
)
@pytest.mark.usefixtures("base")
def test_where_it_is_impossible_it_is_refused(changes: dict[str, Any], message: str, tmp_path: Path):
    with pytest.raises((TsugikiError, ValueError), match=message):
        train(run_config(tmp_path, softmax="sampled", **changes))


def test_targets_and_likely_tokens_are_kept():
    probabilities = torch.zeros(257)
    probabilities[[250, 251, 252]] = 0.1
    expected = sorted({*targets(uneven_blocks()), 250, 251, 252})
    assert kept_tokens(uneven_blocks(), probabilities, 3).tolist() == expected


def test_tokens_of_held_out_records_are_not_kept():
    blocks = pack(store_of([[1, 2, 3], [4, 5, 6], [7, 8, 9]]), np.array([0, 2]), 8, pad=0)
    assert is_target(blocks, 20).nonzero()[:, 0].tolist() == [2, 3, 8, 9]


@pytest.mark.usefixtures("base")
def test_each_run_of_several_says_it_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Runs that share a base and its data have notes of their own."""
    run_all({name: run_config(tmp_path, out=name, softmax="sampled") for name in ("first", "second")})
    assert capsys.readouterr().err.count("--softmax full computes all") == 2


def targets(blocks: Blocks) -> set[int]:
    labels = torch.cat([blocks[row]["labels"] for row in range(len(blocks))])
    return set(labels[labels != IGNORE_INDEX].tolist())
