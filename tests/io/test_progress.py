"""The progress display is quiet where standard error is not a terminal."""

import io
import subprocess
import sys

import pytest
from rich.console import Console
from transformers.utils import logging

from tsugiki.io import ProgressDisplay, hidden_progress_bars, progress


def test_a_terminal_shows_a_bar_and_otherwise_only_lines_are_printed():
    for terminal in (True, False):
        out = io.StringIO()
        display = ProgressDisplay(Console(file=out, force_terminal=terminal, width=100))
        with display.stage("merging [1]", 3) as advance:
            advance(3)
        assert ("merging [1]" in out.getvalue()) == ("100%" in out.getvalue()) == terminal
    assert list(display.track([1, 2], "layers")) == [1, 2]
    display.print("one [line]")
    assert out.getvalue() == "one [line]\n"


@pytest.mark.parametrize("widgets", [False, True])
def test_a_notebook_shows_bars_where_it_has_widgets(widgets: bool, monkeypatch: pytest.MonkeyPatch):
    spec = object() if widgets else None
    monkeypatch.setattr(progress, "find_spec", lambda name: spec if name == "ipywidgets" else pytest.fail(name))
    assert ProgressDisplay(Console(force_jupyter=True)).is_quiet is not widgets


def test_a_notebook_without_widgets_shows_no_warning_of_tqdm():
    code = "import warnings, tsugiki; warnings.warn('IProgress not found. Please update'); warnings.warn('another')"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr
    assert "another" in shown
    assert "IProgress" not in shown


def test_a_command_of_a_notebook_shows_no_bars(monkeypatch: pytest.MonkeyPatch):
    terminal = Console(force_terminal=True)
    monkeypatch.delenv("JPY_PARENT_PID", raising=False)
    assert not ProgressDisplay(terminal).is_quiet
    monkeypatch.setenv("JPY_PARENT_PID", "1")
    assert ProgressDisplay(terminal).is_quiet


@pytest.mark.parametrize("enabled", [True, False])
def test_the_state_is_restored(enabled: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(logging, "_tqdm_active", enabled)
    with hidden_progress_bars():
        assert not logging.is_progress_bar_enabled()
    assert logging.is_progress_bar_enabled() == enabled
    with pytest.raises(KeyboardInterrupt), hidden_progress_bars():
        raise KeyboardInterrupt
    assert logging.is_progress_bar_enabled() == enabled
