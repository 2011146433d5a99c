"""Files and folders that appear complete or not at all."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.errors import assert_refused, refused
from tsugiki.io import (
    check_writable,
    files_into,
    new_file,
    new_folder,
    remove_leftovers,
    rename_folder,
    write_bytes,
    write_text,
)


def test_a_new_file_appears_when_the_block_ends(tmp_path: Path):
    out = tmp_path / "out.txt"
    with new_file(out) as temporary:
        temporary.write_text("text")
        assert temporary.name.startswith(".out.txt.")
        assert temporary.suffix == ".part"
        assert not out.exists()
    assert out.read_text() == "text"
    assert list(tmp_path.iterdir()) == [out]
    with refused("exists already"), new_file(out):
        pass
    with refused("nowhere"), new_file(tmp_path / "nowhere" / "out.txt"):
        pass


def test_an_existing_file_stays_until_the_new_one_is_complete(tmp_path: Path):
    out = tmp_path / "out.txt"
    write_text(out, "old")

    def fail() -> None:
        with new_file(out, replace=True) as temporary:
            temporary.write_text("half")
            raise OSError(28, "No space left on device")

    assert_refused(r"out\.txt: No space left", fail)
    assert out.read_text() == "old"
    assert list(tmp_path.iterdir()) == [out]
    write_bytes(out, b"new")
    assert out.read_bytes() == b"new"


@pytest.mark.parametrize("replace", [False, True])
def test_a_new_folder_appears_when_the_block_ends(tmp_path: Path, replace: bool):
    out, others = tmp_path / "a" / "out", tmp_path / "others"
    with new_folder(out, replace=replace) as temporary:
        (temporary / "one").write_text("1")
        assert not out.exists()
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert (out / "one").read_text() == "1"
    with refused("not empty"), new_folder(others):
        shutil.copytree(out, others)  # by another process
    assert [path.name for path in others.iterdir()] == ["one"]


def test_an_existing_folder_is_refused_or_replaced(tmp_path: Path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").touch()
    with refused("exists already"), new_folder(out):
        pass

    def fail() -> None:
        with new_folder(out, replace=True):
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        fail()
    assert [path.name for path in out.iterdir()] == ["old"]
    with new_folder(out, replace=True) as temporary:
        (temporary / "new").touch()
    assert [path.name for path in out.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [out]
    (tmp_path / "other").mkdir()
    assert_refused("other exists already", rename_folder, out, tmp_path / "other")
    rename_folder(out, tmp_path / "new")
    assert_refused("cannot rename", rename_folder, out, tmp_path / "third")


def test_files_move_into_a_folder_and_the_marker_moves_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = tmp_path / "out"
    out.mkdir()
    (out / "kept").touch()
    order = []
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda path, to: order.append(path.name) or replace(path, to))
    with files_into(out, last="*.safetensors") as temporary:
        for name in ("a.safetensors", "b.json", "z.json"):
            (temporary / name).touch()
        assert [path.name for path in out.iterdir() if not path.name.startswith(".")] == ["kept"]
    assert order[-1] == "a.safetensors"
    assert sorted(path.name for path in out.iterdir()) == ["a.safetensors", "b.json", "kept", "z.json"]


def test_leftovers_of_killed_processes_are_removed(tmp_path: Path):
    folder, file, new = tmp_path / ".a.12345678.part", tmp_path / ".b.12345678.part", tmp_path / ".c.12345678.part"
    folder.mkdir()
    (folder / "weights").touch()
    file.touch()
    new.touch()
    (tmp_path / "kept.part").touch()
    for path in (folder, file):
        os.utime(path, (0, 0))
    remove_leftovers(tmp_path, older_than=60)
    assert sorted(path.name for path in tmp_path.iterdir()) == [new.name, "kept.part"]
    remove_leftovers(tmp_path, of="b")
    assert new.exists()
    remove_leftovers(tmp_path, of="c")
    assert [path.name for path in tmp_path.iterdir()] == ["kept.part"]


def test_a_folder_that_cannot_be_written_is_reported_and_nothing_is_created(tmp_path: Path):
    (tmp_path / "file").touch()
    check_writable(tmp_path / "new" / "deep")
    assert not (tmp_path / "new").exists()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        assert_refused("file", check_writable, path)


def test_a_folder_that_was_being_replaced_is_there_if_the_rename_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").touch()
    rename = Path.replace

    def fail(path: Path, target: Path) -> Path:
        if path.suffix == ".part":
            raise OSError(5, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", fail)
    with refused("Input/output error"), new_folder(out, replace=True) as temporary:
        (temporary / "new").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "old"]


@pytest.mark.parametrize("new", [lambda out: new_folder(out), lambda out: files_into(out, "*")])
def test_parents_that_were_created_are_removed_if_writing_fails(tmp_path: Path, new: Any):
    (tmp_path / "a").mkdir()
    with pytest.raises(ValueError, match="stop"), new(tmp_path / "a" / "b" / "c"):
        raise ValueError("stop")
    assert list(tmp_path.rglob("*")) == [tmp_path / "a"]
