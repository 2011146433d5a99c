"""The cache: folders and values that can be deleted at any time, because Tsugiki can create them again.

    kept(kind, key, compute)                     a JSON value
    kept_of_folders(kind, key, folders, read)    a JSON value for each folder, read again when a file in it changes
    with locked(lock_of(folder), folder):        an entry: a folder of files
        if not has_entry(folder):
            with new_entry(folder, facts) as temporary: ...

Results depend on what is in the cache, so no other user may write there. An entry has a manifest, and a value its key
and a digest; what is damaged, or belongs to another key, is made again. The name of an entry is `<which>-<version>`: a
new entry replaces those of other versions. Entries are written under the lock of their kind, and a value is computed
under a lock of its key.
"""

import json
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from tsugiki.errors import TsugikiError, warn_caller
from tsugiki.io.atomic import WriteError, make_folder, new_folder, remove_leftovers
from tsugiki.io.digests import file_state, read_manifest, sha256, write_manifest
from tsugiki.io.formatting import format_size
from tsugiki.io.json import read_json, to_json_text, write_json
from tsugiki.language import _

_SETTLED = 2_000_000_000
"""Nanoseconds after which another change of a file is sure to give it another time."""


def cache_folder(name: str) -> Path:
    """Return `$XDG_CACHE_HOME/tsugiki/<name>`, or `~/.cache/tsugiki/<name>`, which may not exist.

    The folder `tsugiki` is created, for this user alone. It is an error if other users can write into it.
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tsugiki"
    with suppress(OSError):  # the home may be read-only
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if os.name == "posix" and folder.is_dir():
        _refuse_other_writers(folder)
    return folder / name


def kept(kind: str, key: str, compute: Callable[[], Any]) -> Any:
    """Return a JSON value from the folder `kind` of the cache; it is computed and kept if it is not there.

    `key` is everything that the value depends on. Of processes that need it at once, one computes it. If the cache
    cannot be written, nothing is kept.
    """
    # filelock takes longer to import than the rest, and commands that start need only `cache_folder`.
    from tsugiki.io.locks import locked

    path = _path_of(kind, key)
    found = _read_kept(path, key)
    if found is not None:
        return found
    with ExitStack() as stack:
        with suppress(TsugikiError):
            # The first digits of the key, so that there are at most 4,096 of these files, and none must be removed.
            stack.enter_context(locked(path.with_name(f".{path.name[:3]}.lock"), path))
        found = _read_kept(path, key)
        if found is None:
            found = compute()
            _keep(path, key, found)
        return found


def kept_of_folders(
    kind: str, key: str, folders: Mapping[str, Path], read: Callable[[Path], Any]
) -> dict[str, Any | TsugikiError]:
    """Return for each name the JSON value that `read` gives for its folder, or the TsugikiError that it raises.

    The values are kept in one file of the folder `kind` of the cache. A value is read again if a file in its folder has
    another size, inode or time. What was changed a moment ago is not kept, because a second change could have the same
    time; nor is an error. `read` may only look at the files in the folder; `key` is everything else that the values
    depend on. Of processes that write at once, one wins, and the others read again what it has not.
    """
    key, before = f"{key} {code_state()}", time.time_ns() - _SETTLED
    path = _path_of(kind, key)
    known: dict[str, Any] = json.loads(_read_kept(path, key) or "{}")
    found: dict[str, Any | TsugikiError] = {}
    settled = {}
    for name, folder in folders.items():
        state, changed = _state_of(folder)
        entry = known.get(name)
        try:
            found[name] = entry[1] if entry is not None and entry[0] == state else read(folder)
            if changed < before:
                settled[name] = [state, found[name]]
        except TsugikiError as error:
            found[name] = error
    if settled != known:
        # As one text, because Python's JSON takes ten times as long for values that are written in lines.
        _keep(path, key, json.dumps(settled))
    return found


def _state_of(folder: Path) -> tuple[str, int]:
    """Return a digest of the states of the files in a folder, and when one was last changed, in ns; 2^63: unknown."""
    try:
        with os.scandir(folder) as entries:
            states = sorted((entry.name, file_state(entry.stat())) for entry in entries if not entry.is_dir())
    except OSError:  # `read` says what is wrong
        return "", 1 << 63
    return sha256([repr(states).encode()]), max((max(state[-2:]) for _name, state in states), default=1 << 63)


@lru_cache(maxsize=1)
def code_state() -> int:
    """Return the time of the last change of Tsugiki's files, in ns; part of the key of what another version may change.

    A version number would not tell a checkout in which somebody works from the one of a minute ago.
    """
    return max(path.stat().st_mtime_ns for path in Path(__file__).parents[1].rglob("*.[ps]*"))


def _path_of(kind: str, key: str) -> Path:
    return cache_folder(kind) / f"{sha256([key.encode()]).removeprefix('sha256:')[:32]}.json"


def _keep(path: Path, key: str, value: Any) -> None:
    with suppress(TsugikiError):  # the cache may be read-only
        make_folder(path.parent)
        write_json(path, _with_digest(key, value))


def _read_kept(path: Path, key: str) -> Any:
    with suppress(TsugikiError):
        content = read_json(path)
        if content == _with_digest(key, content.get("value")):
            return content["value"]
    return None


def _with_digest(key: str, value: Any) -> dict[str, Any]:
    return {"key": key, "value": value, "sha256": sha256([to_json_text({"key": key, "value": value}).encode()])}


def lock_of(entry: Path) -> Path:
    """Return the lock of an entry's kind."""
    return entry.parent / ".lock"


def has_entry(folder: Path) -> bool:
    """Return whether an entry exists and is as it was written; a warning names a damaged entry.

    An entry is compared with its manifest once in a process.
    """
    if not folder.is_dir():
        return False
    try:
        _check(folder, folder.stat().st_ino)
    except (TsugikiError, OSError) as error:
        warn_caller(_("{error}; it is made again", error=error))
        return False
    with suppress(OSError):  # the cache may be read-only
        os.utime(folder)  # the time of the last use
    return True


@lru_cache(maxsize=8)
def _check(folder: Path, inode: int) -> None:
    if read_manifest(folder).get("entry") != folder.name:
        raise TsugikiError("{folder} holds another model", folder=folder)


@contextmanager
def new_entry(folder: Path, facts: Mapping[str, Any]) -> Iterator[Path]:
    """Yield a temporary folder that becomes an entry when the block succeeds; the caller holds the lock.

    Entries of other versions are removed, and what killed processes left. The facts are for the entry's manifest.
    """
    remove_leftovers(folder.parent)  # no other process writes without the lock
    for other in folder.parent.glob(f"{folder.name.partition('-')[0]}-*"):
        shutil.rmtree(other, ignore_errors=True)
    with new_folder(folder, replace=True) as temporary:
        yield temporary
        write_manifest(temporary, {"entry": folder.name, **facts})


@contextmanager
def another_place() -> Iterator[None]:
    """Say in an error of writing into the cache, within the block, how to name another place for it."""
    try:
        yield
    except WriteError as error:
        raise WriteError("{error}; XDG_CACHE_HOME names another place for the cache", error=error) from error


def check_room(folder: Path, size: float) -> None:
    """Check that the disk has room for this many bytes in a folder."""
    free = shutil.disk_usage(folder).free
    if size > free:
        raise WriteError(
            "{needed} are needed, and the disk of {folder} has {free} left",
            folder=folder,
            free=format_size(free),
            needed=format_size(size),
        )


def _refuse_other_writers(folder: Path) -> None:
    """Raise a TsugikiError if other users can write into a folder.

    Folders of root are admitted, as an administrator or a container image makes them. Root may use any user's folder,
    because the folder that is mounted into a container often belongs to the user outside. A group may write, because
    many systems give each user a group of their own, and with it this mode to all folders.
    """
    found = folder.stat()
    if found.st_mode & stat.S_IWOTH:
        raise TsugikiError(
            "{folder} can be written by every user of this machine, who could change what is computed; remove it, "
            "or run: chmod -R go-w {folder}",
            folder=folder,
        )
    if found.st_uid not in (os.getuid(), 0) and os.getuid() != 0:
        raise TsugikiError(
            "{folder} belongs to another user, who could change what is computed; set XDG_CACHE_HOME to a folder "
            "of your own",
            folder=folder,
        )


def folder_size(folder: Path) -> int:
    """Return the size of all files in a folder and its subfolders in bytes; 0 if there is no such folder."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):  # removed in the meantime
            total += path.lstat().st_size if path.is_file() else 0
    return total
