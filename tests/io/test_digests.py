"""SHA-256 digests against hashlib."""

import hashlib
import io
from pathlib import Path

import pytest

from tsugiki.io import changed_files, combined_digest, file_sha256, read_chunks, sha256, sha256_bytes, tensor_digest

CONTENT = bytes(range(256)) * 3
EXPECTED = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"


def test_bytes_and_files_have_the_digest_of_hashlib(tmp_path: Path):
    (tmp_path / "file").write_bytes(CONTENT)
    assert sha256([CONTENT]) == sha256([CONTENT[:7], CONTENT[7:]]) == file_sha256(tmp_path / "file") == EXPECTED
    assert sha256_bytes(CONTENT) == hashlib.sha256(CONTENT).digest()


def test_changed_files_are_named(tmp_path: Path):
    for name in "abc":
        (tmp_path / name).write_text(name)
    digests = {name: file_sha256(tmp_path / name) for name in "abc"}
    assert changed_files(tmp_path, digests) == []
    (tmp_path / "a").write_text("A")
    (tmp_path / "c").unlink()
    assert changed_files(tmp_path, digests) == ["a", "c"]


def test_a_tensor_is_digested_with_its_description(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tsugiki.io.digests._CHUNK", 5)
    expected = hashlib.sha256(b"F32 [2] " + CONTENT[3:21]).hexdigest()
    assert tensor_digest(io.BytesIO(CONTENT), 3, 21, "F32 [2] ") == expected


def test_a_combined_digest_depends_on_names_and_not_on_their_order():
    first = combined_digest({"a": "1", "b": "2"})
    assert first == combined_digest({"b": "2", "a": "1"}) != combined_digest({"a": "2", "b": "1"})


def test_a_file_that_ends_too_early_is_an_error(tmp_path: Path):
    (tmp_path / "file").write_bytes(CONTENT)
    with (tmp_path / "file").open("rb") as file, pytest.raises(EOFError, match="file"):
        list(read_chunks(file, len(CONTENT) + 1))
