"""A manifest finds every change in its folder."""

from pathlib import Path

import pytest

from tsugiki.errors import TsugikiError
from tsugiki.io import MANIFEST_FILE, read_manifest, write_manifest

FACTS = {"step": 3, "losses": [0.1, 1e-300], "name": "枝"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "inner").mkdir()
    (tmp_path / "weights").write_bytes(b"0123456789")
    (tmp_path / "inner" / "empty").touch()
    write_manifest(tmp_path, FACTS)
    return tmp_path


def test_the_facts_are_read_back(folder: Path):
    assert read_manifest(folder) == FACTS
    (folder / "another").touch()
    assert read_manifest(folder) == FACTS
    write_manifest(folder, {"again": True})
    assert read_manifest(folder) == {"again": True}


def test_changed_and_missing_files_are_named(folder: Path):
    weights = folder / "weights"
    weights.write_bytes(b"0123456780")
    with pytest.raises(TsugikiError, match="weights has changed"):
        read_manifest(folder)
    weights.write_bytes(b"012345678")
    with pytest.raises(TsugikiError, match="weights has 9 bytes instead of 10"):
        read_manifest(folder)
    weights.unlink()
    with pytest.raises(TsugikiError, match="weights is missing"):
        read_manifest(folder)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"step": 3', '"step": 2'),
        ('"format": 1', '"format": 0'),
        ("枝", "?"),
        ("1e-300", "1e-301"),
        ("1e-300", "1E-300"),
    ],
)
def test_a_change_of_the_manifest_itself_is_found(folder: Path, old: str, new: str):
    path = folder / MANIFEST_FILE
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(TsugikiError, match=MANIFEST_FILE):
        read_manifest(folder)


def test_a_folder_without_a_manifest_is_incomplete(folder: Path):
    (folder / MANIFEST_FILE).unlink()
    with pytest.raises(TsugikiError, match=f"incomplete.*{MANIFEST_FILE}"):
        read_manifest(folder)


def test_a_manifest_of_a_later_version_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tsugiki.io.digests._FORMAT", 2)
    write_manifest(folder, FACTS)
    monkeypatch.undo()
    with pytest.raises(TsugikiError, match="format"):
        read_manifest(folder)
