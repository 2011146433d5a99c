"""Whole processes: what each tool is started with, and how its failure is told."""

import sys

import pytest
from benchmarks.wall_time import COMMANDS, ENVIRONMENTS

from benchmarks import wall_time


def test_a_process_gets_the_environment_of_its_tool():
    script = "import os; assert os.environ.get('MALLOC_TRIM_THRESHOLD_') == '4294967296', 'memory is not kept'"
    for name in ("peft-eager-malloc", "peft-sdpa-malloc"):
        assert wall_time._seconds([sys.executable, "-c", script], ENVIRONMENTS[name]) > 0
    with pytest.raises(SystemExit, match=r"exited with 1: (?s:.*)memory is not kept"):
        wall_time._seconds([sys.executable, "-c", script], ENVIRONMENTS.get("peft-eager", {}))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_memory_alone_differs(attention, tmp_path):
    plain, kept = (COMMANDS[f"peft-{attention}{ending}"]("base", "texts", 3, tmp_path) for ending in ("", "-malloc"))
    assert plain == kept
    assert plain[-2:] == ["--attention", attention]


def test_an_unknown_tool_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr("sys.argv", ["wall_time", "--tools", "peft-eagre,tsugiki"])
    with pytest.raises(SystemExit):
        wall_time.main()
    assert "unknown tool peft-eagre; choose from peft-eager, peft-sdpa" in capsys.readouterr().err
