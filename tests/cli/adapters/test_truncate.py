"""`tsugiki adapters truncate`."""

import json
from pathlib import Path

import pytest

from tests.cli.adapters.spoiled import Run, adapted, assert_refused, spoiled
from tests.tiny import relative_error


def test_truncated(run: Run, base: str, pair: tuple[str, str], library: Path):
    status, out, _ = run("adapters", "truncate", "b", "--rank", "2", "--out", "b2")
    assert status == 0
    assert "overall: " in out
    assert json.loads((library / "b2" / "adapter_config.json").read_text())["r"] == 2
    assert relative_error(adapted(base, library / "b2"), adapted(base, library / "b")) > 1e-3
    assert run("adapters", "truncate", "b", "--energy", "0.5", "--out", "half")[0] == 0
    made = json.loads((library / "half" / "tsugiki.json").read_text())["provenance"]
    assert (made["operation"], made["settings"]) == ("truncate", {"energy": 0.5})


@pytest.mark.parametrize(
    ("arguments", "fact"),
    [
        (("truncate", "a", "--out", "x"), "--rank or --energy"),
        (("truncate", "a", "--rank", "2", "--energy", "0.9", "--out", "x"), "--rank or --energy"),
        (("truncate", "a", "--rank", "two", "--out", "x"), "--rank"),
    ],
)
@pytest.mark.usefixtures("pair")
def test_bad_input_is_one_line_and_changes_nothing(
    arguments: tuple[str, ...], fact: str, run: Run, library: Path, tmp_path: Path
):
    assert_refused(run, tmp_path, [spoiled(library / "a", tmp_path, word) for word in arguments], fact)
