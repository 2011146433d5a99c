"""The progress display is quiet where standard error is not a terminal."""

import io

from rich.console import Console

from tsugiki.io.progress import ProgressDisplay


def test_outside_a_terminal_only_lines_are_printed():
    out = io.StringIO()
    display = ProgressDisplay(Console(file=out))
    with display.stage("merging [1]", 3) as advance:
        advance(2)
    assert list(display.track([1, 2], "layers")) == [1, 2]
    assert out.getvalue() == ""
    display.say("one [line]")
    assert out.getvalue() == "one [line]\n"


def test_a_terminal_shows_a_bar():
    out = io.StringIO()
    display = ProgressDisplay(Console(file=out, force_terminal=True, width=100))
    with display.stage("merging [1]", 3) as advance:
        advance(3)
    assert "merging [1]" in out.getvalue()
    assert "100%" in out.getvalue()
