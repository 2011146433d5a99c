"""Steps by several ways, in turns."""

import sys
from functools import partial
from pathlib import Path

import pytest
from benchmarks.speed.workload import Workload

from benchmarks.speed import turns
from tests.files import json_of
from tests.tiny import save_tiny
from tsugiki.io import measurements
from tsugiki.training.data.micro_batches import MicroBatches


def test_each_way_computes_its_rows_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sizes: list[int] = []
    share = MicroBatches._share

    def counted(micro_batches: MicroBatches, step: int) -> object:
        dealt = share(micro_batches, step)
        sizes.extend(len(micro.rows) for micro in dealt)
        return dealt

    monkeypatch.setattr(MicroBatches, "_share", counted)
    monkeypatch.setattr(measurements, "_decided", {})
    monkeypatch.setattr(turns, "_limit", lambda workload, dtype: 1e-3)
    monkeypatch.setattr(turns, "Workload", partial(Workload, length=32))
    base = str(save_tiny(tmp_path / "base", n_positions=128))
    given = ["--model", base, "--batch", "2", "--turns", "1", "--ways", "torch:1", "onednn:2"]
    monkeypatch.setattr(sys, "argv", ["turns", *given, "--out", str(tmp_path / "turns.json")])
    turns.main()
    assert sizes == [1, 1, 2, 1, 1, 2]
    assert [row[2] for row in json_of(tmp_path / "turns.json")["rows"]] == ["torch:1", "onednn:2"]
