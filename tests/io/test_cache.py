"""The folder of caches belongs to the user alone, and an entry to its key."""

import os
import shutil
from pathlib import Path

import pytest

from tsugiki import TsugikiError
from tsugiki.io import cache, cache_folder, read_kept, write_kept

pytestmark = pytest.mark.skipif(os.name != "posix", reason="users and modes are those of POSIX")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "new" / "cache"))
    return tmp_path / "new" / "cache" / "tsugiki"


def test_the_folder_is_created_for_this_user_alone(root: Path):
    assert cache_folder("tokens") == root / "tokens"
    assert root.stat().st_mode & 0o777 == 0o700
    assert not (root / "tokens").exists()


@pytest.mark.parametrize(("mode", "refused"), [(0o777, True), (0o757, True), (0o1777, True), (0o775, False)])
def test_a_folder_that_everybody_can_write_to_is_refused(mode: int, refused: bool, root: Path):
    root.mkdir(parents=True)
    root.chmod(mode)
    if not refused:
        cache_folder("tokens")
        return
    with pytest.raises(TsugikiError, match=r"every user of this machine.*chmod -R go-w .*new/cache/tsugiki") as caught:
        cache_folder("tokens")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("owner", "user", "refused"), [(1000, 1000, False), (1000, 1001, True), (0, 1001, False), (1000, 0, False)]
)
def test_the_folder_of_another_user_is_refused(
    owner: int, user: int, refused: bool, root: Path, monkeypatch: pytest.MonkeyPatch
):
    root.mkdir(parents=True)
    found = os.stat_result((0o40755, 1, 1, 2, owner, owner, 0, 0, 0, 0))
    monkeypatch.setattr(os, "getuid", lambda: user)
    monkeypatch.setattr(type(root), "stat", lambda path: found)
    if not refused:
        cache._refuse_other_writers(root)
        return
    with pytest.raises(TsugikiError, match="belongs to another user.*XDG_CACHE_HOME"):
        cache._refuse_other_writers(root)


def test_a_home_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert cache_folder("tokens") == tmp_path / "file" / "tsugiki" / "tokens"


def test_a_value_belongs_to_its_key(tmp_path: Path):
    one, other = tmp_path / "a" / "one.json", tmp_path / "a" / "other.json"
    write_kept(one, "one", 1)
    write_kept(other, "other", ["sha256:12"])
    assert (read_kept(one, "one"), read_kept(other, "other")) == (1, ["sha256:12"])
    assert read_kept(tmp_path / "missing.json", "one") is None
    shutil.copy(other, one)
    assert read_kept(one, "one") is None
    for damaged in ("", "[]", "{}", other.read_text().replace("sha256:12", "sha256:13")):
        other.write_text(damaged)
        assert read_kept(other, "other") is None
