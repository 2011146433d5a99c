"""Runs in stages: each trains the adapter of the one before, and finished ones are not repeated."""

from pathlib import Path
from typing import Any

import pytest

from tests.runs import run_config
from tests.tiny import TEXT
from tsugiki import TsugikiError
from tsugiki.adapters import source_adapter
from tsugiki.io import ADAPTER_FILE
from tsugiki.report import stages_table
from tsugiki.training import run_stages
from tsugiki.training.workflows import stages as stages_module

FILE = Path("run.yaml")


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    config = run_config(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    for number in range(4):
        (other / f"{number}.txt").write_text(f"{number}\n" + TEXT[1200 + number * 300 :][:400], "utf-8")
    names = ("model", "data", "max_steps", "block_size", "batch_size", "held_out", "learning_rate")
    common = {name: getattr(config, name) for name in names}
    return {
        **common,
        "out": str(tmp_path / "out"),
        "lora": {"r": 2},
        "stages": [{"max_steps": 2}, {"data": str(other), "lora": {"r": 4}}],
    }


def test_a_stage_begins_with_the_adapter_of_the_one_before(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    first, second = records = run_stages(settings, FILE)
    assert [record.config.out for record in records] == [f"{settings['out']}/1", f"{settings['out']}/2"]
    assert second.started_from is not None
    assert second.started_from.weights == source_adapter(first.folder()).weights
    assert (first.config.lora.r, second.config.lora.r) == (2, 4)  # type: ignore[union-attr]
    assert not first.retention_evaluations
    # The base has the same loss on the text that the first stage held out, as its own text and as a later one's.
    assert second.retention_evaluations[0].loss == pytest.approx(first.evaluations[0].loss)
    headers, rows = stages_table(records)
    assert [len(row) for row in rows] == [len(headers)] * 2
    assert rows[0][-1] == "–"

    def trained(*_: Any) -> None:
        raise AssertionError("a finished stage is not repeated")

    monkeypatch.setattr(stages_module, "run", trained)
    assert [record.evaluations for record in run_stages(settings, FILE)] == [record.evaluations for record in records]


def test_a_stage_whose_start_has_changed_is_refused(settings: dict[str, Any]):
    first, second = run_stages(settings, FILE)
    file = first.folder() / ADAPTER_FILE
    file.write_bytes((second.folder() / ADAPTER_FILE).read_bytes())
    with pytest.raises(TsugikiError, match=r"began with another adapter than .*/1 holds now; delete it"):
        run_stages(settings, FILE)


@pytest.mark.parametrize(
    ("changes", "fact"),
    [
        ({"stages": []}, "stages must be a list"),
        ({"stages": [{"max_steps": 1}, "b.jsonl"]}, "stages must be a list"),
        ({"stages": [{"model": "embedded"}]}, "model cannot differ between stages"),
        ({"stages": [{}, {"epochs": -1}]}, "epochs: input should be greater than 0"),
        ({"stages": [{}, {"rank": 8}]}, "rank: unknown setting"),
        ({"out": None}, "out is missing"),
    ],
)
def test_bad_settings_end_before_the_first_stage(settings: dict[str, Any], changes: dict[str, Any], fact: str):
    with pytest.raises(TsugikiError, match=fact):
        run_stages({**settings, **changes}, FILE)
    assert not Path(settings["out"]).exists()
