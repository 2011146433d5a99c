"""Locks between processes, so that only one process works on a file or a folder at a time.

The operating system releases a lock when its process ends, also if it is killed.
"""

import os
import platform
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tsugiki.errors import TsugikiError, error_text, system_error, warn_caller
from tsugiki.io.atomic import make_folder, remove_empty
from tsugiki.io.json import read_json, write_json
from tsugiki.language import _

_LOCK, OWNER_FILE = ".lock", ".lock.json"
_PATIENCE = 2.0  # seconds until a message says for what a command waits
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@contextmanager
def locked(path: Path, what: Path) -> Iterator[None]:
    """Hold the lock `path` while the block runs; wait as long as another process or thread holds it.

    It is an empty file, which may remain; a file beside it names the process that holds it. Its folder is created. Who
    waits for more than two seconds is told for which process, and that it writes `what`. A thread that holds it can
    take it again.
    """
    make_folder(path.parent)
    owner = path.with_name(f"{path.name}.pid")
    with ExitStack() as stack:
        try:
            stack.enter_context(_held(path, _PATIENCE, again=True))
        except Timeout:
            process = "?"
            with suppress(OSError):
                process = error_text(owner.read_text(encoding="utf-8"), 20)
            warn_caller(_("waiting for process {process}, which writes {what}", process=process, what=what))
            stack.enter_context(_held(path, timeout=-1, again=True))
        with suppress(OSError):
            owner.write_text(str(os.getpid()), encoding="utf-8")
        try:
            yield
        finally:
            with suppress(OSError):
                owner.unlink()


@contextmanager
def sole_use(folder: Path) -> Iterator[None]:
    """Let no other process use a folder while the block runs.

    Within the block, `.lock` is locked, and `.lock.json` names the process, its machine and the time at which it took
    the lock. Not every shared file system supports locks between machines, so processes of other machines are kept away
    by `.lock.json` alone. `.lock` remains. A folder that does not exist is created, and removed at the end if it holds
    nothing except `.lock`.
    """
    created = make_folder(folder)
    with ExitStack() as stack:
        stack.callback(remove_empty, created)
        try:
            stack.enter_context(_held(folder / _LOCK, timeout=0))
        except Timeout as error:
            raise _in_use(folder, _owner(folder)) from error
        if created:
            stack.callback(_remove_if_alone, folder / _LOCK)
        owner = _owner(folder)
        if owner and not _is_this_machine(owner):
            raise _in_use(folder, owner)
        try:
            name_process(folder, os.getpid())
            yield
        finally:
            with suppress(OSError):
                (folder / OWNER_FILE).unlink()


def name_process(folder: Path, number: int) -> None:
    """Write `.lock.json` for a process of this machine, which uses a folder by `sole_use` or will do so."""
    started = datetime.now().astimezone().isoformat(timespec="seconds")
    process = {"process": number, "process_start": _process_start(number)}
    write_json(folder / OWNER_FILE, {**process, **_this_machine(), "started": started})


def is_in_use(folder: Path) -> bool:
    """Return whether a process of this or another machine uses a folder by `sole_use`."""
    owner = _owner(folder)
    return bool(owner) and (not _is_this_machine(owner) or _is_locked(folder / _LOCK))


def process_of(folder: Path) -> int | None:
    """Return the id of the process of this machine that `.lock.json` names; None if none does for certain.

    It is verified that this is not a later process with the same id: it started at the time in `.lock.json`.
    """
    owner = _owner(folder)
    number, began = owner.get("process"), owner.get("process_start")
    if not isinstance(number, int) or number <= 1 or began is None:
        return None
    is_here = all(owner.get(name) == value for name, value in _this_machine().items())
    return number if is_here and _process_start(number) == began else None


def _process_start(number: int) -> float | None:
    """Return the start time of a process, in the unit of its operating system; None if there is no such process."""
    with suppress(OSError, ValueError, IndexError):  # Linux: in ticks since boot, independent of changes of the clock
        return int(Path(f"/proc/{number}/stat").read_bytes().rpartition(b")")[2].split()[19])
    import psutil

    with suppress(psutil.Error, OverflowError, ValueError):
        return float(psutil.Process(number).create_time())
    return None


def _is_locked(path: Path) -> bool:
    """Return whether a process holds a lock, or may hold it. The test takes the lock for a moment if it is free."""
    if path.is_symlink() or not path.is_file():
        return False
    try:
        with _held(path, timeout=0):
            return False
    except (Timeout, TsugikiError):
        return True


def _held(path: Path, timeout: float, again: bool = False) -> AbstractContextManager[object]:
    """Take a lock, which a `with` block releases; a `timeout` of -1 waits for ever, 0 raises `Timeout` at once.

    `again`: this thread may hold it already.
    """
    try:
        return FileLock(path, is_singleton=again).acquire(timeout=timeout)
    except Timeout:
        raise
    except OSError as error:
        raise system_error(_("cannot lock {path}: {reason}"), path, error) from error


def _remove_if_alone(path: Path) -> None:
    """Remove a file if nothing else is in its folder."""
    with suppress(OSError):
        if os.listdir(path.parent) == [path.name]:
            path.unlink()


def _owner(folder: Path) -> dict[str, Any]:
    """Return the content of `.lock.json`; empty if it cannot be read."""
    try:
        return read_json(folder / OWNER_FILE)
    except TsugikiError:
        return {}


def _this_machine() -> dict[str, str]:
    """Return the name of this machine and, on Linux, the id of its current boot."""
    with suppress(OSError):
        return {"host": platform.node(), "boot": _BOOT_ID.read_text(encoding="ascii").strip()}
    return {"host": platform.node()}


def _is_this_machine(owner: dict[str, Any]) -> bool:
    """Return whether the owner is on this machine, so that the lock shows whether it is running.

    Either fact is enough: containers have other host names, but the same boot id.
    """
    here = _this_machine()
    return any(name in owner and owner[name] == here[name] for name in here)


def _in_use(folder: Path, owner: dict[str, Any]) -> TsugikiError:
    if not owner:
        return TsugikiError(
            "{folder} is in use by another process; wait for its end, or choose another folder", folder=folder
        )
    process, host, started = (error_text(owner.get(name), 100) for name in ("process", "host", "started"))
    if _is_this_machine(owner):
        return TsugikiError(
            "{folder} is in use by process {process}, started at {started}; wait for its end, stop it, or "
            "choose another folder",
            folder=folder,
            process=process,
            started=started,
        )
    return TsugikiError(
        "{folder} is in use by process {process} on {host}, started at {started}; if it does not run any more, "
        "delete {file}",
        folder=folder,
        process=process,
        host=host,
        started=started,
        file=folder / OWNER_FILE,
    )
