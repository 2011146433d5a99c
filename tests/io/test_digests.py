"""SHA-256 digests against hashlib."""

import hashlib
from pathlib import Path

import pytest

from tests.errors import assert_refused
from tsugiki.io import (
    MANIFEST_FILE,
    changed_files,
    file_sha256,
    read_chunks,
    read_manifest,
    sha256,
    sha256_bytes,
    write_manifest,
)

CONTENT = bytes(range(256)) * 3
EXPECTED = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"


def test_bytes_and_files_have_the_digest_of_hashlib(tmp_path: Path):
    (tmp_path / "file").write_bytes(CONTENT)
    assert sha256([CONTENT]) == sha256([CONTENT[:7], CONTENT[7:]]) == file_sha256(tmp_path / "file") == EXPECTED
    assert sha256_bytes(CONTENT) == hashlib.sha256(CONTENT).digest()


def test_a_file_that_ends_too_early_is_an_error(tmp_path: Path):
    (tmp_path / "file").write_bytes(CONTENT)
    with (tmp_path / "file").open("rb") as file, pytest.raises(EOFError, match="file"):
        list(read_chunks(file, len(CONTENT) + 1))


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
    assert_refused("weights has changed", read_manifest, folder)
    weights.write_bytes(b"012345678")
    assert_refused("weights has 9 bytes instead of 10", read_manifest, folder)
    weights.unlink()
    assert_refused("weights is missing", read_manifest, folder)
    (folder / MANIFEST_FILE).unlink()
    assert_refused(f"incomplete.*{MANIFEST_FILE}", read_manifest, folder)


def test_a_manifest_of_a_later_version_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patch:
        patch.setattr("tsugiki.io.digests._FORMAT", 2)
        write_manifest(folder, FACTS)
    assert_refused("format", read_manifest, folder)


def test_changed_files_are_named(tmp_path: Path):
    for name in "abc":
        (tmp_path / name).write_text(name)
    digests = {name: file_sha256(tmp_path / name) for name in "abc"}
    assert changed_files(tmp_path, digests) == []
    (tmp_path / "a").write_text("A")
    (tmp_path / "c").unlink()
    assert changed_files(tmp_path, digests) == ["a", "c"]
