"""Whole processes: what each tool is started with, and how its failure is told."""

import pytest

from benchmarks import wall_time


def test_an_unknown_tool_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr("sys.argv", ["wall_time", "--tools", "peft-eagre,tsugiki"])
    with pytest.raises(SystemExit):
        wall_time.main()
    assert "unknown tool peft-eagre; choose from peft-eager, peft-sdpa" in capsys.readouterr().err
