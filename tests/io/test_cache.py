"""The folder of caches belongs to the user alone, and an entry to its key."""

import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.errors import assert_refused
from tsugiki import TsugikiError
from tsugiki.io import cache, cache_folder, has_entry, kept, kept_of_folders, locks, new_entry

pytestmark = pytest.mark.skipif(os.name != "posix", reason="users and modes are those of POSIX")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "new" / "cache"))
    return tmp_path / "new" / "cache" / "tsugiki"


def test_the_folder_is_created_for_this_user_alone(root: Path):
    assert cache_folder("tokens") == root / "tokens"
    assert root.stat().st_mode & 0o777 == 0o700
    assert not (root / "tokens").exists()


@pytest.mark.parametrize("mode", [0o777, 0o757, 0o1777])
def test_a_folder_that_everybody_can_write_to_is_refused(mode: int, root: Path):
    root.mkdir(parents=True)
    root.chmod(0o775)
    cache_folder("tokens")
    root.chmod(mode)
    assert_refused(r"every user of this machine.*chmod -R go-w .*new/cache/tsugiki", cache_folder, "tokens")


def test_the_folder_of_another_user_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch):
    root.mkdir(parents=True)
    found = os.stat_result((0o40755, 1, 1, 2, 1000, 1000, 0, 0, 0, 0))
    monkeypatch.setattr(type(root), "stat", lambda path: found)
    for user in (1000, 0):
        monkeypatch.setattr(os, "getuid", lambda user=user: user)
        cache._refuse_other_writers(root)
    monkeypatch.setattr(os, "getuid", lambda: 1001)
    assert_refused("belongs to another user.*XDG_CACHE_HOME", cache._refuse_other_writers, root)


def test_a_home_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert cache_folder("tokens") == tmp_path / "file" / "tsugiki" / "tokens"
    computed: list[int] = []
    assert [kept("times", "key", lambda: computed.append(1) or 1) for _ in range(2)] == computed == [1, 1]


def test_a_value_is_computed_once_for_its_key(root: Path):
    computed: list[int] = []

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


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Fifty folders with a text each, which have not changed for a while."""
    monkeypatch.setattr(cache, "_SETTLED", 0)
    found = {f"{number}\udc80": tmp_path / "library" / str(number) for number in range(50)}
    for number, folder in enumerate(found.values()):
        folder.mkdir(parents=True)
        (folder / "text").write_text(f"{number:3}")
    return found


class Reading:
    """Reads the text of a folder, and counts."""

    def __init__(self) -> None:
        self.read: list[str] = []

    def __call__(self, folder: Path) -> str:
        self.read.append(folder.name)
        text = (folder / "text").read_text()
        if text == "bad":
            raise TsugikiError("it is bad")
        return text

    def of(self, folders: dict[str, Path], key: str = "") -> dict[str, object]:
        self.read.clear()
        return kept_of_folders("texts", key, folders, self)


def test_folders_are_read_again_only_if_a_file_in_them_has_changed(folders: dict[str, Path]):
    reading = Reading()
    first = reading.of(folders)
    assert (list(first), reading.read) == (list(folders), [str(number) for number in range(50)])
    assert (reading.of(folders), reading.read) == (first, [])
    (folders["3\udc80"] / "text").write_text("new")
    os.utime(folders["3\udc80"] / "text", (1, 1))
    (folders["4\udc80"] / "text").replace(folders["5\udc80"] / "text")  # as every file is written here
    (folders["4\udc80"] / "text").write_text("bad")
    (folders["6\udc80"] / "more").write_text("")
    shutil.rmtree(folders.pop("7\udc80"))
    folders["new"] = folders["0\udc80"].with_name("new")
    shutil.copytree(folders["0\udc80"], folders["new"])
    changed = reading.of(folders)
    assert reading.read == ["3", "4", "5", "6", "new"]
    assert (changed["3\udc80"], changed["5\udc80"], changed["new"]) == ("new", "  4", "  0")
    assert str(changed["4\udc80"]) == "it is bad"
    assert "7\udc80" not in changed
    again = reading.of(folders)
    assert reading.read == ["4"], "an error is not kept"
    assert {name: str(value) for name, value in again.items()} == {name: str(changed[name]) for name in folders}
    reading.of(folders, "another key")
    assert len(reading.read) == 50


def test_folders_are_read_again_if_what_was_kept_is_damaged_or_has_just_changed(
    folders: dict[str, Path], root: Path, monkeypatch: pytest.MonkeyPatch
):
    reading = Reading()
    first = reading.of(folders)
    (kept_file,) = (root / "texts").iterdir()
    for content in (b"", kept_file.read_bytes().replace(b"  9", b"  8")):
        kept_file.write_bytes(content)
        assert reading.of(folders) == first
        assert len(reading.read) == 50
    monkeypatch.setattr(cache, "_SETTLED", 10**12)  # a second change could have the same time
    assert reading.of(folders) == reading.of(folders)
    assert len(reading.read) == 50


def test_threads_that_keep_at_once_find_the_same(folders: dict[str, Path]):
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: Reading().of(folders), range(4)))
    assert found == [Reading().of(folders)] * 4
