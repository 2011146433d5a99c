"""Fixtures of the command line's tests."""

import shutil
import sys
from pathlib import Path

import pytest

from tests.runs import TRAIN
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


@pytest.fixture(scope="session")
def _finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base, a text and a finished run."""
    folder = tmp_path_factory.mktemp("finished")
    save_tiny(folder / "base")
    (folder / "text.txt").write_text(TEXT)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["tsugiki", "train", "--model", str(folder / "base"), *TRAIN])
        with pytest.raises(SystemExit) as stop:
            main()
    assert not stop.value.code
    return folder


@pytest.fixture
def trained(_finished: Path, tmp_path: Path) -> str:
    """A finished run in the folder `run` of the working directory, and its text; returns the base, which is shared."""
    shutil.copytree(_finished / "run", tmp_path / "run")
    shutil.copy(_finished / "text.txt", tmp_path)
    return str(_finished / "base")
