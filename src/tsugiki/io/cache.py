"""The folder of caches, whose files can be deleted at any time because Tsugiki can create them again.

Results depend on what is in it, so no other user may write there, and each entry holds the key that it belongs to.
"""

import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

from tsugiki.errors import TsugikiError
from tsugiki.io.atomic import make_folder
from tsugiki.io.digests import sha256
from tsugiki.io.json import read_json, to_json_text, write_json
from tsugiki.language import _


def cache_folder(name: str) -> Path:
    """Return `$XDG_CACHE_HOME/tsugiki/<name>`, or `~/.cache/tsugiki/<name>`, which may not exist.

    The folder `tsugiki` is created, for this user alone.

    Raises:
        TsugikiError: other users can write into the folder `tsugiki`.
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tsugiki"
    with suppress(OSError):  # the home may be read-only
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if os.name == "posix" and folder.is_dir():
        _refuse_other_writers(folder)
    return folder / name


def read_kept(path: Path, key: str) -> Any:
    """Return the value in a file of `write_kept`; None if the file is missing or damaged, or belongs to another key."""
    with suppress(TsugikiError):
        content = read_json(path)
        if content == _entry(key, content.get("value")):
            return content["value"]
    return None


def write_kept(path: Path, key: str, value: Any) -> None:
    """Write a JSON value with its key to a file in the cache.

    Raises:
        TsugikiError: the file cannot be written.
    """
    make_folder(path.parent)
    write_json(path, _entry(key, value))


def _entry(key: str, value: Any) -> dict[str, Any]:
    return {"key": key, "value": value, "sha256": sha256([to_json_text({"key": key, "value": value}).encode()])}


def _refuse_other_writers(folder: Path) -> None:
    """Raise a TsugikiError if other users can write into a folder.

    Folders of root are admitted, as an administrator or a container image makes them. Root may use any user's folder,
    because the folder that is mounted into a container often belongs to the user outside. A group may write, because
    many systems give each user a group of their own, and with it this mode to all folders.
    """
    found = folder.stat()
    if found.st_mode & stat.S_IWOTH:
        raise TsugikiError(
            _(
                "{folder} can be written by every user of this machine, who could change what is computed; remove it, "
                "or run: chmod -R go-w {folder}"
            ).format(folder=folder)
        )
    if found.st_uid not in (os.getuid(), 0) and os.getuid() != 0:
        raise TsugikiError(
            _(
                "{folder} belongs to another user, who could change what is computed; set XDG_CACHE_HOME to a folder "
                "of your own"
            ).format(folder=folder)
        )


def folder_size(folder: Path) -> int:
    """Return the size of all files in a folder and its subfolders in bytes; 0 if there is no such folder."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):  # removed in the meantime
            total += path.lstat().st_size if path.is_file() else 0
    return total
