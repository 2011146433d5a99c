"""A lock is held by one thread or process at a time, and the system releases it when a process is killed."""

import json
import os
import platform
import signal
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.errors import assert_refused, refused
from tests.files import edit_json, json_of
from tsugiki.io import is_in_use, locked, name_process, process_of, sole_use

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")


def test_one_thread_at_a_time(tmp_path: Path):
    inside, most = 0, 0

    def work(_number: int) -> None:
        nonlocal inside, most
        for _ in range(20):
            with locked(tmp_path / "new" / "lock", tmp_path):
                inside += 1
                most = max(most, inside)
                threading.Event().wait(0.001)
                inside -= 1

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(work, range(3)))
    assert most == 1


def test_the_thread_that_holds_a_lock_can_take_it_again(tmp_path: Path):
    def take() -> None:
        with locked(tmp_path / "lock", tmp_path):
            pass

    with locked(tmp_path / "lock", tmp_path):
        take()
        other = threading.Thread(target=take)
        other.start()
        other.join(0.1)
        assert other.is_alive()
    other.join()


def test_a_lock_that_cannot_be_created_is_an_error(tmp_path: Path):
    (tmp_path / "file").touch()
    with refused("file"), locked(tmp_path / "file" / "lock", tmp_path):
        pass
    (tmp_path / "folder").mkdir()
    with refused("cannot lock"), locked(tmp_path / "folder", tmp_path):
        pass


def test_a_folder_in_use_is_refused_with_the_process_that_uses_it(tmp_path: Path):
    folder = tmp_path / "run"
    assert (is_in_use(folder), process_of(folder)) == (False, None)
    with sole_use(folder):
        assert (is_in_use(folder), process_of(folder)) == (True, os.getpid())
        assert_refused(rf"run is in use by process {os.getpid()}, started at 20", _use, folder)
        (folder / ".lock.json").unlink()
        assert_refused("in use by another process", _use, folder)
        (folder / "kept").touch()
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "kept"]
    _use(folder)
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "kept"]


def test_folders_that_were_created_and_stay_empty_are_removed(tmp_path: Path):
    _use(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="stop"):
        _use(tmp_path / "a" / "b", ValueError("stop"))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_a_killed_process_used_is_free(tmp_path: Path):
    child = os.fork()
    if child == 0:
        with sole_use(tmp_path):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert json_of(tmp_path / ".lock.json")["process"] == child
    _use(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_a_process_of_another_machine_keeps_the_folder_until_its_file_is_deleted(tmp_path: Path):
    owner = tmp_path / ".lock.json"
    owner.write_text(json.dumps({"process": 7, "host": "gpu7", "boot": "x", "started": "2026-11-25T12:00:00+09:00"}))
    assert_refused(rf"process 7 on gpu7, started at 2026.*delete {owner}", _use, tmp_path)
    assert owner.exists()
    owner.unlink()
    _use(tmp_path)


@pytest.mark.parametrize("same", ["host", "boot"])
def test_a_machine_that_was_started_again_and_a_container_with_a_new_name_are_this_machine(tmp_path: Path, same: str):
    """Its lock is gone, so its process is, too."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    if same == "boot" and not boot.exists():
        pytest.skip("the system has no boot id")
    machine = {"host": platform.node()} if same == "host" else {"boot": boot.read_text().strip()}
    (tmp_path / ".lock.json").write_text(json.dumps({"process": 7, "host": "gpu7", "boot": "x"} | machine))
    _use(tmp_path)


def test_a_process_that_will_use_a_folder_is_named_until_it_ends(tmp_path: Path):
    with subprocess.Popen(["sleep", "600"]) as process:
        name_process(tmp_path, process.pid)
        assert (is_in_use(tmp_path), process_of(tmp_path)) == (False, process.pid)
        process.kill()
    assert process_of(tmp_path) is None


@pytest.mark.parametrize(
    "changes",
    [
        *({"process": process} for process in (os.getppid(), 2**22 + 5, 0, -1, "7", 2**70)),
        {"process_start": 1},
        {"process_start": None},
        {"host": "gpu7"},
        {"boot": "x"},
    ],
)
def test_a_process_that_cannot_be_the_owner_is_not_named(tmp_path: Path, changes: dict[str, object]):
    """Its number was used again, or is that of another machine or container, while the folder is locked."""
    with sole_use(tmp_path):
        path = tmp_path / ".lock.json"
        edit_json(path, **changes)
        assert process_of(tmp_path) is None
        assert is_in_use(tmp_path)


def _use(folder: Path, error: Exception | None = None) -> None:
    with sole_use(folder):
        if error is not None:
            raise error
