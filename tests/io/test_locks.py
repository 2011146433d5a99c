"""A lock is held by one thread or process at a time, and the system releases it when a process is killed."""

import os
import signal
import threading
from pathlib import Path

import pytest

from tsugiki.errors import TsugikiError
from tsugiki.io.locks import locked


def test_one_thread_at_a_time(tmp_path: Path):
    inside, most = 0, 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(20):
            with locked(tmp_path / "new" / "lock"):
                inside += 1
                most = max(most, inside)
                threading.Event().wait(0.001)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_killed_process_holds_no_lock(tmp_path: Path):
    child = os.fork()
    if child == 0:
        with locked(tmp_path / "lock"):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    with locked(tmp_path / "lock"):
        pass


def test_a_lock_that_cannot_be_created_is_an_error(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(TsugikiError, match="file"), locked(tmp_path / "file" / "lock"):
        pass
    (tmp_path / "folder").mkdir()
    with pytest.raises(TsugikiError, match="cannot lock"), locked(tmp_path / "folder"):
        pass
