"""Fixtures of the command line's tests."""

import sys
from pathlib import Path

import pytest

from tests.tiny import TEXT, save_tiny
from tsugiki.cli.main import main


@pytest.fixture(autouse=True)
def _working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run `tsugiki …` in this process: (status, standard output, standard error)."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tsugiki", *arguments])
        capsys.readouterr()
        try:
            main()
            status = 0
        except SystemExit as stop:
            status = int(stop.code or 0)
        return status, *capsys.readouterr()

    return call


@pytest.fixture
def base(tmp_path: Path) -> str:
    (tmp_path / "text.txt").write_text(TEXT)
    return save_tiny(tmp_path / "base")
