"""Times that are kept in the cache."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tsugiki.io import cache_folder, kept_seconds


def test_times_are_measured_once_and_impossible_ones_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    measured = []

    def measure() -> dict[str, float]:
        measured.append(1)
        return {"a": 0.5, "b": 2.0}

    def kept() -> dict[str, float]:
        return kept_seconds("times.json", "key", ("a", "b"), measure)

    assert [kept(), kept()] == [{"a": 0.5, "b": 2.0}] * 2
    assert len(measured) == 1
    path = cache_folder("machine") / "times.json"
    (key,) = json.loads(path.read_text())
    values: list[Any] = [math.nan, -1.0, 0.0, -0.0, math.inf, "1", None, True, 1e400]
    contents: list[Any] = [{key: {"a": 0.5, "b": value}} for value in values]
    for content in [*contents, {key: {"a": 0.5}}, {key: 3}, {"another": {"a": 0.5, "b": 2.0}}, []]:
        path.write_text(json.dumps(content))
        before = len(measured)
        assert [kept(), kept()] == [{"a": 0.5, "b": 2.0}] * 2, content
        assert len(measured) == before + 1
