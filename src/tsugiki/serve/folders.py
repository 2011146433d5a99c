"""Files and folders that a request names, below a folder of the server."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from tsugiki.language import _
from tsugiki.serve.errors import ApiError

_LONGEST = 1000  # characters of a path


def inside(root: Path, name: str) -> Path:
    """Return the file or folder below `root` that a request names by a relative path, with slashes.

    No part of the path may be hidden, `..` or a symbolic link.
    """
    parts = name.split("/")
    if len(name) > _LONGEST or not all(is_allowed(part) for part in parts):
        message = _("{name!r} is no path below the server's folder", name=name[:100])
        raise ApiError(400, message, code="invalid_path")
    path = root
    for part in parts:
        path /= part
        try:
            mode = path.lstat().st_mode
        except (OSError, ValueError):
            mode = 0
        if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
            message = _("there is no file or folder {name!r}", name=name[:100])
            raise ApiError(404, message, code="not_found")
    return path


def is_allowed(name: str) -> bool:
    """Return whether a file or folder may have this name; hidden ones and `..` may not."""
    return bool(name) and name[0] != "." and name.isprintable() and not set(name) & set('/\\:*?"<>|')


def with_home(path: Path) -> str:
    """Return a path as pages and settings show it: with ~ for the user's home folder."""
    try:
        return (Path("~") / path.relative_to(Path.home())).as_posix()
    except (RuntimeError, ValueError):  # there is none, or the path is elsewhere
        return str(path)


def base_name(name: str) -> str:
    """Return the name of a base as pages show it: that of a model's folder without the path to it."""
    return Path(name).name if Path(name).is_absolute() else name


def without_paths(text: str, *folders: Path) -> str:
    """Return a text in which files of some folders are named without the folders' paths."""
    for folder in folders:
        text = text.replace(f"{folder}{os.sep}", "")
    return text


def entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Yield the files and folders that a request could name, sorted; none if the folder cannot be read."""
    try:
        with os.scandir(folder) as found:
            named = sorted((entry for entry in found if is_allowed(entry.name)), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in named:
        if entry.is_dir(follow_symlinks=False) or entry.is_file(follow_symlinks=False):
            yield entry


def read_end(path: Path, size: int) -> str:
    """Return the last `size` bytes of a text file that others write to; empty if there is none, or it is a link."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return ""
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - size))
            return file.read(size).decode("utf-8", "replace")
    except OSError:
        return ""
