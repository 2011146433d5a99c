"""Sweeps over a grid of settings."""

from pathlib import Path
from typing import Any

import pytest

from tests.training.workflows.comparisons import SETTINGS, write
from tsugiki import TsugikiError
from tsugiki.training import load_sweep, needed_rank, sweep
from tsugiki.training.workflows import runs_on_one_base
from tsugiki.training.workflows.compare import change

pytestmark = pytest.mark.usefixtures("comparison_data")


def grid(**axes: list[Any]) -> Path:
    return write("s.yaml", settings={**SETTINGS, "lora": {"lora_alpha": 4}, "learning_rate": 1e-2}, grid=axes)


def test_a_sweep_loads_once_and_each_point_is_a_run_of_its_own(monkeypatch: pytest.MonkeyPatch):
    loads: list[Any] = []
    plain = runs_on_one_base.load_base
    monkeypatch.setattr(runs_on_one_base, "load_base", lambda *given: loads.append(given) or plain(*given))
    config = load_sweep(grid(r=[1, 2], learning_rate=[1e-2, 1e-3]), {})
    points = sweep(config)
    assert len(loads) == 1
    assert [dict(point.values) for point in points] == [
        {"r": r, "learning_rate": rate} for r in (1, 2) for rate in (1e-2, 1e-3)
    ]
    assert len({point.record.evaluations[0].loss for point in points}) == 1, "each begins from the base"
    alone = load_sweep(grid(r=[2], learning_rate=[1e-3]), {"out": "alone"})
    weights = "adapter_model.safetensors"
    (own,) = sweep(alone)
    folders = (Path(points[3].record.config.out), Path(own.record.config.out))
    assert (folders[0] / weights).read_bytes() == (folders[1] / weights).read_bytes(), "in company as alone"
    again = sweep(config)
    assert len(loads) == 2, "nothing is loaded where all is done"
    assert [point.loss for point in again] == [point.loss for point in points]
    assert change(points[0], points[0]).relative == 0
    assert needed_rank(points) is not None
    assert needed_rank(points[:2]) is None


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        ({}, "the grid is empty"),
        ({"r": []}, "grid.r has no values"),
        ({"rank": [1]}, "grid.rank: .*learning_rate"),
        ({"r": [1, 1]}, "r=1"),
        ({"r": [0]}, "r is 0"),
        ({"learning_rate": [-1.0]}, "learning_rate: .*greater than 0"),
    ],
)
def test_grids_that_cannot_be(axes: dict[str, list[Any]], said: str):
    with pytest.raises(TsugikiError, match=said):
        sweep(load_sweep(grid(**axes), {}))
    assert not Path("c").exists()
