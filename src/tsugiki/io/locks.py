"""Locks between processes: only one of them works on a file or a folder at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from tsugiki.errors import TsugikiError
from tsugiki.io.atomic import make_folder


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock `path` while the block runs; wait as long as another process or thread holds it.

    The system releases the lock when a process ends, also if it is killed. The file is empty, and may remain.

    Raises:
        TsugikiError: the lock cannot be created.
    """
    make_folder(path.parent)
    lock = FileLock(path)
    try:
        lock.acquire()
    except OSError as error:
        raise TsugikiError(f"cannot lock {path}: {error.strerror or error}") from error
    try:
        yield
    finally:
        lock.release()
