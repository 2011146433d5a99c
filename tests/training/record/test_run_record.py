"""The record of a run: what is written is read, and what is missing or invalid is an error in one line."""

from pathlib import Path
from typing import Any

import pytest

from tests.errors import refused
from tests.files import edit_json, json_of
from tests.report.pages import record
from tsugiki.training import FORMAT, RunConfig, finished, loss_interval, new_record, read_record


def change(folder: Path, **fields: Any) -> None:
    """Write a record into `folder`, with some fields of its JSON replaced."""
    record().write(folder)
    path = folder / "run.json"
    edit_json(path, **fields)


def test_a_record_is_read_as_it_was_written(tmp_path: Path):
    record().write(tmp_path)
    assert read_record(tmp_path) == record()
    assert json_of(tmp_path / "run.json")["format"] == FORMAT


def test_intervals_are_computed_and_not_read(tmp_path: Path):
    """Those of earlier versions were too narrow."""
    evaluations = [{**entry, "loss_interval": [4.99, 5.01]} for entry in record().to_json()["evaluations"]]
    change(tmp_path, evaluations=evaluations)
    assert read_record(tmp_path) == record()
    first = read_record(tmp_path).evaluations[0]
    assert first.loss_interval == loss_interval(first.documents)


def test_the_record_of_a_run_that_has_not_started_has_its_settings():
    settings = RunConfig(model="m", data="d", out="o", lora={"r": 4}).to_record()  # type: ignore[arg-type]
    new = new_record(settings)
    assert new.config.to_dict() == settings
    assert (new.status, new.training, new.evaluations) == ("running", None, [])
    with refused("has not finished"):
        finished(new)


CONFIG, DATA = (record().to_json()[name] for name in ("config", "data"))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"config": {"model": "m"}}, "config.method"),
        ({"evaluations": [{"step": 0, "loss": 5.0}]}, "evaluations.0.perplexity"),
        ({"status": "stopped"}, "status"),
        ({"format": FORMAT + 1}, f"format {FORMAT + 1}"),
        ({"format": [1]}, "format [1]"),
        ({"config": {"x": "a" * 400_000}}, "config has more than 300,000 characters"),
        ({"data": {**DATA, "blocks": 0}}, "data.blocks"),
        ({"config": {**CONFIG, "out": "a\0b"}}, "config.out"),
        ({"config": {**CONFIG, "seed": 10**200}}, "integer"),
    ],
)
def test_what_is_missing_or_invalid_is_named_in_one_line(fields: dict[str, Any], named: str, tmp_path: Path):
    change(tmp_path, **fields)
    with refused("run.json") as caught:
        read_record(tmp_path)
    assert named in str(caught.value)
