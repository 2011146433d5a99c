"""The folder of caches belongs to the user alone, and an entry to its key."""

import os
import shutil
import threading
from pathlib import Path

import pytest

from tsugiki import TsugikiError
from tsugiki.io import cache, cache_folder, has_entry, kept, locks, new_entry

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


@pytest.fixture
def computed() -> list[int]:
    return []


def test_a_value_is_computed_once_for_its_key(root: Path, computed: list[int]):
    def kept_value(key: str) -> object:
        return kept("times", key, lambda: computed.append(1) or {"a": 0.5})

    assert [kept_value("one"), kept_value("one"), kept_value("other")] == [{"a": 0.5}] * 3
    assert len(computed) == 2
    one, other = sorted((root / "times").glob("*.json"))
    for damaged in ("", "[]", "{}", other.read_text(), one.read_text().replace("0.5", "0.6")):
        one.write_text(damaged)
        before = len(computed)
        assert [kept_value("one"), kept_value("other")] == [{"a": 0.5}] * 2
        assert len(computed) == before + 1, damaged


def test_only_a_process_that_needs_the_same_value_waits(root: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(locks, "_PATIENCE", 0.2)
    begun, end = os.pipe(), os.pipe()

    def slow() -> str:
        os.write(begun[1], b"x")
        os.read(end[0], 1)
        return "of the other process"

    child = os.fork()
    if child == 0:
        os.close(end[1])  # so that it ends with this process
        kept("references", "one", slow)
        os._exit(0)
    os.read(begun[0], 1)
    assert kept("references", "other", lambda: "at once") == "at once"
    threading.Timer(0.5, lambda: os.write(end[1], b"x")).start()
    with pytest.warns(UserWarning, match=rf"waiting for process {child}, which writes .*references.*\.json"):
        assert kept("references", "one", lambda: "again") == "of the other process"
    assert os.waitpid(child, 0)[1] == 0
    assert not list((root / "references").glob("*.pid"))


@pytest.mark.skipif(os.geteuid() == 0, reason="everything can be written")
def test_without_a_cache_a_value_is_computed_each_time(root: Path, computed: list[int]):
    root.mkdir(parents=True, mode=0o500)
    assert [kept("times", "key", lambda: computed.append(1) or 1) for _ in range(2)] == [1, 1]
    assert len(computed) == 2


def test_an_entry_is_whole_or_made_again(root: Path):
    folder = root / "models" / "one-1"

    def write() -> None:
        cache._check.cache_clear()
        with new_entry(folder, {"model": "a"}) as temporary:
            (temporary / "weights").write_text("12345")

    assert not has_entry(folder)
    old = root / "models" / "one-0"
    for path in (old, root / "models" / "other-0", root / "models" / ".one-1.01234567.part"):
        path.mkdir(parents=True)
    write()
    assert has_entry(folder)
    assert sorted(path.name for path in (root / "models").iterdir()) == ["one-1", "other-0"]
    (folder / "weights").write_text("12346")
    cache._check.cache_clear()
    with pytest.warns(UserWarning, match="weights has changed.*made again"):
        assert not has_entry(folder)
    write()
    shutil.copytree(folder, old)
    with pytest.warns(UserWarning, match="one-0 holds another model.*made again"):
        assert not has_entry(old)
