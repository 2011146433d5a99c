"""`tsugiki adapters remove`."""

from pathlib import Path

import pytest

from tests.files import contents


def test_remove_asks(run, two: Path, monkeypatch: pytest.MonkeyPatch):
    before = contents(two)
    status, _, err = run("adapters", "remove", "soseki")
    assert (status, "--yes" in err) == (2, True)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("typer.confirm", lambda question: "soseki" not in question)
    assert run("adapters", "remove", "soseki")[0] == 1
    assert contents(two) == before
    assert run("adapters", "remove", "akutagawa")[0] == 0
    assert [path.name for path in two.iterdir()] == ["soseki"]
