"""Fixtures of the tests of `tsugiki adapters`."""

from pathlib import Path

import pytest

from tests.adapters.folders import write
from tests.report.pages import record


@pytest.fixture(autouse=True)
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TSUGIKI_ADAPTERS", str(tmp_path / "library"))
    return tmp_path / "library"


@pytest.fixture
def two(library: Path) -> Path:
    record().write(write(library / "soseki", 1))
    write(library / "akutagawa", 2)
    return library
