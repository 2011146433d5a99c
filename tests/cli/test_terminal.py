"""What a terminal shows: narrow ones, encodings without some characters, and how threads wait."""

import io
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
from rich.cells import cell_len
from rich.console import Console

from tsugiki.cli import print_sections, print_table
from tsugiki.cli.main import _let_threads_wait_passively
from tsugiki.report import Samples, Section, Table
from tsugiki.training import RunProgress, TimeLeft


@pytest.mark.parametrize(("columns", "language"), [(70, "en"), (70, "ja"), (100, "en"), (100, "ja")])
def test_the_live_line_shows_steps_loss_activity_and_time_whole(
    columns: int, language: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TSUGIKI_LANG", language)
    file = io.StringIO()
    console = Console(file=file, width=columns, force_terminal=True, color_system=None, highlight=False)
    with RunProgress(console) as display:
        display.begin(4000, 1000)
        display.step(1234, 4000, 5.1234, 12_345)
        with display.stage("measuring", None):
            display._progress.refresh()
        display._progress.refresh()
    shown = file.getvalue()
    assert all(part in shown for part in ("1234/4000", "5.123", "12,345", "measuring"))
    assert "…" not in shown


def test_the_time_left_includes_what_follows_the_last_step():
    task = SimpleNamespace(completed=30, total=50, elapsed=40.0, fields={"first": 10, "after": 7.0})
    assert str(TimeLeft().render(task)) == "0:00:47"  # type: ignore[arg-type]
    task.completed = 10
    assert str(TimeLeft().render(task)) == "-:--:--"  # type: ignore[arg-type]


@pytest.mark.parametrize(("columns", "beside"), [(60, False), (80, True), (120, True)])
def test_samples_are_side_by_side_if_there_is_room(
    columns: int, beside: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(Console, "is_terminal", True)
    texts = [("before", "庭の梅は白い。\n" + "雪" * 70), ("after", "a word\x1b[2J" + " word" * 30)]
    print_sections([Section("samples", "", [Samples("Who?", texts, "me")])])
    lines = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out).splitlines()
    assert lines[:2] == ["question: Who?", "expected: me"]
    assert ("after" in lines[2]) == beside
    assert max(map(cell_len, lines)) <= min(columns, 100)
    assert sum(line.count("雪") for line in lines) == 70
    assert sum(line.count("word") for line in lines) == 31
    assert not any("\x1b" in line for line in lines)


def test_a_table_that_is_too_wide_is_a_list(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("COLUMNS", "70")
    monkeypatch.setattr(Console, "is_terminal", True)
    rows = [["dora", "LoRA for the direction of each weight row " * 4, "5,112 (0.07%)"], ["full", "every weight", ""]]
    print_table(Table(["method", "summary", "parameters"], rows), "below")
    out = capsys.readouterr().out
    assert "│" not in out
    assert all(len(line) <= 70 for line in out.splitlines())
    assert "5,112 (0.07%)" in out
    assert " ".join(out.split()).count("LoRA for the direction of each weight row") == 4
    print_table(Table(["method", "summary"], [["full", "every weight"]]))
    assert "│" in capsys.readouterr().out


def test_characters_that_an_encoding_lacks_do_not_end_a_command():
    code = "from tsugiki.cli import main\nmain._run = lambda _: print('⟦枝⟧')\nmain.main()"
    environment = {**os.environ, "PYTHONIOENCODING": "cp932"}
    assert subprocess.check_output([sys.executable, "-c", code], env=environment).decode("cp932").strip() == "?枝?"


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE"), ({"GOMP_SPINCOUNT": "100"}, None)],
)
def test_threads_wait_passively_unless_the_user_says_how(
    given: dict[str, str], expected: str | None, monkeypatch: pytest.MonkeyPatch
):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    _let_threads_wait_passively()
    assert os.environ.get("OMP_WAIT_POLICY") == expected
    os.environ.pop("OMP_WAIT_POLICY", None)
