"""The range test of learning rates: what it chooses, and that it leaves the run as it was."""

from pathlib import Path

import pytest
import torch

from tests.runs import assert_resumes, run_config
from tsugiki import TsugikiError
from tsugiki.io import ADAPTER_FILE
from tsugiki.training import ProbePoint, RunConfig, limit, rate_probe, train


def points(*changes: float) -> list[ProbePoint]:
    return [ProbePoint(learning_rate=float(rate), change=change) for rate, change in enumerate(changes, 1)]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([-0.1, -0.2, -0.3, -0.2, 0.1, 0.5, 0.9], 4),
        ([0.01, 0.01, -0.2, 0.01, 0.01, 0.4, 0.9], 3),  # two rows that are a little higher are noise
        ([-0.1] * 7, 7),  # no rate was too high
        ([0.1] * 7, 1),
    ],
)
def test_the_limit_is_the_highest_rate_that_lowers_the_mean_of_five_rows(changes: list[float], expected: int):
    assert limit(points(*changes)) == expected


def test_a_run_with_the_number_that_was_measured_is_the_same(tmp_path: Path):
    record = assert_resumes(train, run_config(tmp_path, learning_rate="probe", save_steps=1), 2)
    rate = record.chosen("learning_rate")
    assert 1 < len(record.rate_probe) <= rate_probe.ROWS
    assert rate == float(f"{limit(record.rate_probe) / 5:.2g}")
    assert record.loss_curve[0].learning_rate == rate
    given = run_config(tmp_path, "given", learning_rate=rate, save_steps=1)
    assert not train(given).rate_probe
    first, second = (Path(folder) / ADAPTER_FILE for folder in (given.out, record.folder()))
    assert first.read_bytes() == second.read_bytes()


def test_a_loss_that_rises_at_once_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rate_probe, "_FROM", 1e9)
    monkeypatch.setattr(rate_probe, "_FAR_ABOVE", 1.0 + 1e-9)
    with pytest.raises(TsugikiError, match=r"the loss rises at the lowest learning rate .* preview"):
        train(run_config(tmp_path, "risen", learning_rate="probe"))
    assert not (tmp_path / "risen").exists()


def test_full_fine_tuning_has_no_probe(tmp_path: Path):
    with pytest.raises(ValueError, match="learning_rate probe needs a method that trains an adapter"):
        RunConfig.model_validate({"model": "m", "data": "d", "out": "o", "method": "full", "learning_rate": "probe"})


def test_infinite_losses_end_the_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rate_probe, "_TO", 1e30)
    record = train(run_config(tmp_path, "infinite", learning_rate="probe"))
    assert torch.tensor([point.change for point in record.rate_probe]).isfinite().all()
