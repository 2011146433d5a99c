"""Pairs of polite and plain sentences: other sentences are held out, and the length says nothing about the choice."""

import runpy
from pathlib import Path

import pytest

from tests.files import rows_of

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "preferences" / "polite_pairs.py"


def test_the_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(SCRIPT), run_name="__main__")
    learned, others, chosen = (rows_of(Path(name)) for name in ("polite.jsonl", "other.jsonl", "chosen.jsonl"))
    assert (len(learned), len(others)) == (192, 48)
    assert {row["prompt"] for row in learned}.isdisjoint(row["prompt"] for row in others)
    assert [row["completion"] for row in chosen] == [row["chosen"] for row in learned]
    for rows in (learned, others):
        longer = sum(len(row["chosen"]) > len(row["rejected"]) for row in rows)
        assert 0.4 < longer / len(rows) < 0.6
