"""Mutated records of runs are read and shown, or refused in one line."""

import random
from pathlib import Path
from typing import Any

import pytest

from tests.report.pages import record
from tests.robustness.mutations import MAX_SIZE, json_bytes, mutate_bytes, mutate_value
from tests.robustness.test_adapters import files
from tsugiki.cli import print_summary
from tsugiki.hub.publication import publication
from tsugiki.report import write_report
from tsugiki.training import finished, read_record

pytest.importorskip("resource", reason="the harness needs a Unix system")
harness = pytest.importorskip("tests.robustness.harness")

RECORDS: list[dict[str, Any]] = [
    {
        **record(
            config={"out": "run", "lora": {"r": 8, "lora_alpha": 32.0, "lora_dropout": 0.1, "bias": "none"}}
        ).to_json()
    },
]
PIECES = [
    b'"',
    b"\\ud800",
    b"\\u0000",
    b"[",
    b"{",
    b",",
    b":",
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"9" * 200,
    b"null",
    b"\xff",
]


def mutated_record(rng: random.Random, folder: Path) -> None:
    """Write a `run.json` of which values or bytes are changed, or whose lists are very long."""
    fields = rng.choice(RECORDS)
    if rng.random() < 0.7:
        data = json_bytes(mutate_value(rng, fields))
    elif rng.random() < 0.5:
        data = mutate_bytes(rng, json_bytes(fields), PIECES)
    else:
        name = rng.choice([name for name, value in fields.items() if isinstance(value, list)])
        items = [
            mutate_value(rng, item) if rng.random() < 0.01 else item for item in fields[name] * rng.choice((9, 999))
        ]
        data = json_bytes({**fields, name: items})[:MAX_SIZE]
    (folder / "run.json").write_bytes(data)


def read_texts(rng: random.Random, folder: Path) -> None:
    """Read the record, prepare its publication with its card, and print its summary."""
    for name, content in files("lora").items():
        (folder / name).write_bytes(content)
    mutated_record(rng, folder)
    run = read_record(folder)
    publication(folder, "user/name", rng.choice((None, "owner/base")))
    finished(run)
    print_summary(run, folder / "report.html")


def read_pages(rng: random.Random, folder: Path) -> None:
    mutated_record(rng, folder)
    write_report(folder)


READERS = {"records of runs": read_texts, "pages of runs": read_pages}
LONG = {
    "records of runs": harness.LONG,
    "pages of runs": harness.LONG // 10,
}  # a page takes half a second, for its plots
QUICK = {"records of runs": 100, "pages of runs": 5}


@pytest.mark.parametrize("name", READERS)
def test_some_mutations(name: str, tmp_path: Path):
    harness.check(name, READERS[name], QUICK[name], tmp_path / "case")


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_many_mutations(name: str, tmp_path: Path):
    harness.check(name, READERS[name], LONG[name], tmp_path / "case")
