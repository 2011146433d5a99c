"""The settings of comparisons and sweeps: hostile values are refused before any run."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tsugiki.errors import TsugikiError
from tsugiki.training import MAX_RUNS, load_comparison, load_sweep

COMMON = {"model": "m", "data": "d", "out": "o"}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"grid": {axis: list(range(100)) for axis in ("r", "lora_alpha", "init_lora_weights")}}, "1,000,000 points"),
        ({"grid": {"r": [1]}, "settings": {"lora": "r"}}, "settings.lora is 'r'"),
        ({"grid": {"target_modules": [["../../a"]]}}, "grid: .*cannot be the name of a folder"),
        ({"grid": {"a" * 5000: [1]}}, "no such axis"),
        ({"grid": {"r": ["x" * 5000]}}, "r: .*integer"),
    ],
)
def test_sweeps(fields: dict[str, Any], said: str, tmp_path: Path):
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump({**COMMON, **fields}))
    with pytest.raises(TsugikiError, match=said) as caught:
        load_sweep(path, {}).runs()
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize(
    ("methods", "said"),
    [
        ({f"m{number}": {} for number in range(MAX_RUNS + 1)}, "methods: .*1000"),
        ({"../a": {}}, "cannot be the name of a folder"),
        ({"a": {"lora": {f"x{number}": 1 for number in range(1000)}}}, "x0, .* and 995 more: no such setting"),
        ({"a": {f"x{number}": 1 for number in range(1000)}}, "x0: unknown setting; .*995 more problems"),
    ],
)
def test_comparisons(methods: dict[str, Any], said: str, tmp_path: Path):
    path = tmp_path / "comparison.yaml"
    path.write_text(yaml.safe_dump({**COMMON, "methods": methods}, sort_keys=False))
    with pytest.raises(TsugikiError, match=said) as caught:
        load_comparison(path, {}).runs()
    assert len(str(caught.value)) < 2000
