"""Fixtures of the tests of comparisons and sweeps."""

import json
from pathlib import Path

import pytest

from tests.tiny import TEXT, save_tiny


@pytest.fixture
def comparison_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny base, twelve records and a text of retention data in the working directory."""
    monkeypatch.chdir(tmp_path)
    texts = [{"text": f"{i} " + TEXT[i * 100 : i * 100 + 90 + i]} for i in range(12)]
    Path("d.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    Path("own.txt").write_text(TEXT[500:700])
    save_tiny(tmp_path / "base")
