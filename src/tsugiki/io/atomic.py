"""Write files and folders so that they appear complete or not at all, also after a crash or a power failure.

Everything is written under a temporary name first (`.NAME.8-hex-digits.part`, in the same folder), flushed to the disk
(fsync), and renamed; then the folder is flushed, so that the new name survives as well. If writing fails, the temporary
file is removed. Temporary files of a killed process are removed by `remove_leftovers`, and when the same file or folder
is written again more than a day later.
"""

import errno
import glob
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import groupby
from pathlib import Path

from safetensors import SafetensorError

from tsugiki.errors import TsugikiError, system_error
from tsugiki.io.system import flush, move
from tsugiki.language import _

DAY = 24 * 60 * 60
"""The age in seconds from which a temporary file is considered to be left by a killed process."""
_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))  # a full disk, a used-up quota
_NAME_LENGTH = 40  # characters of the target's name that a temporary name keeps


class WriteError(TsugikiError):
    """The system could not write a file or a folder, for instance because the disk is full. Nothing is left behind."""


@contextmanager
def new_file(out: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary path to write to; it is renamed to `out` when the block succeeds and removed when it fails.

    The folder must exist. An existing file is an error, or with `replace` it is replaced when the block succeeds.
    Raises a `WriteError` if writing fails, for example because the disk is full.
    """
    check_new_file(out, replace=replace)
    if not replace:
        remove_leftovers(out.parent, older_than=DAY, of=out.name)
    temporary = _temporary(out, "part")
    with _write_errors(out):
        try:
            yield temporary
            flush(temporary)
            move(temporary, out)
            flush(out.absolute().parent)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def check_new_file(out: Path, *, replace: bool = False) -> None:
    """Check that `new_file` can create a file: its folder exists, and the file does not, or is to be replaced."""
    with _write_errors(out):  # the name may be too long, for example
        exists, has_folder = out.is_symlink() or out.exists(), out.absolute().parent.is_dir()
    if exists and not replace:
        raise TsugikiError("{out} exists already; choose another name, or remove it first", out=out)
    if not has_folder:
        raise TsugikiError(
            "cannot write {out}: there is no folder {parent}; create it first", out=out, parent=out.parent
        )


@contextmanager
def new_folder(out: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary folder to fill; it is renamed to `out` when the block succeeds and removed when it fails.

    Its parents are created. An existing folder with files is an error, or with `replace` it is replaced when the block
    succeeds.
    """
    if not replace:
        refuse_existing(out)
    remove_leftovers(out.parent, older_than=DAY, of=out.name)
    with _write_errors(out), _temporary_folder(out) as temporary:
        yield temporary
        _flush_tree(temporary)
        if replace:
            with _out_of_the_way(out):
                move(temporary, out)
        else:
            if out.is_dir():
                out.rmdir()
            move(temporary, out)
        flush(out.absolute().parent)


@contextmanager
def files_into(folder: Path, last: str) -> Iterator[Path]:
    """Yield a temporary folder to fill; when the block succeeds, its files are moved into `folder`.

    The folder is created if it does not exist. A file of the same name is replaced, and other files are not changed.
    Each file appears complete or not at all. Files that match the pattern `last`, such as "*.safetensors", are moved
    last, so if one of them is in `folder`, all others are, too.
    """
    with _write_errors(folder), _temporary_folder(folder / "files") as temporary:
        yield temporary
        _flush_tree(temporary)
        paths = sorted(temporary.iterdir(), key=lambda path: path.match(last))
        for _other, group in groupby(paths, key=lambda path: path.match(last)):
            for path in group:
                move(path, folder / path.name)
            flush(folder)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically, replacing an existing file; lone surrogates become question marks."""
    write_bytes(path, text.encode("utf-8", errors="replace"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically, replacing an existing file."""
    with new_file(path, replace=True) as temporary:
        temporary.write_bytes(content)


def make_folder(folder: Path) -> list[Path]:
    """Create a folder and its parents, and return those that did not exist, the deepest first."""
    with _write_errors(folder):
        return _create(folder)


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove folders that are empty; the others are not changed, and errors are ignored."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def check_writable(folder: Path) -> None:
    """Check that files can be written into `folder`, or that it can be created; nothing is created."""
    if folder.is_file():
        raise TsugikiError("{folder} is a file; name a folder", folder=folder)
    nearest = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise TsugikiError(
            "{folder} cannot be written: {nearest} is not a folder that you may write to",
            folder=folder,
            nearest=nearest,
        )


def refuse_existing(out: Path) -> None:
    """Check that `out` can be created as a new folder: it does not exist, or is an empty folder."""
    if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise TsugikiError("{out} exists already; choose another name, or remove it first", out=out)


def rename_folder(folder: Path, target: Path) -> None:
    """Rename a folder, or a symbolic link to one, within the same parent folder."""
    if os.path.lexists(target):
        raise TsugikiError("{target} exists already; choose another name, or remove it first", target=target)
    try:
        move(folder, target)
        flush(target.absolute().parent)
    except OSError as error:
        raise system_error(_("cannot rename {path}: {reason}"), folder, error) from error


def remove_folder(folder: Path) -> None:
    """Remove a folder with its content; if it is a symbolic link, only the link is removed.

    If a file in it cannot be removed, which is an error, the rest is left under a hidden name.
    """
    removed = _temporary(folder, "removed")
    try:
        if folder.is_symlink():
            folder.unlink()
            return
        move(folder, removed)
    except OSError as error:
        raise system_error(_("cannot remove {path}: {reason}"), folder, error) from error
    try:
        shutil.rmtree(removed)
    except OSError as error:
        raise TsugikiError(
            "{folder} was removed, but part of it remains in {removed}: {reason}",
            folder=folder,
            removed=removed,
            reason=error.strerror or error,
        ) from error


def remove_leftovers(folder: Path, older_than: float = 0.0, of: str | None = None) -> None:
    """Remove the temporary files and folders that killed processes left in a folder; errors are ignored.

    Subfolders are not searched. Only entries are removed whose last change is at least `older_than` seconds ago, which
    must be more than 0 if other processes may be writing there, and that were written for the file or folder `of`.
    """
    pattern = f"{glob.escape(_hidden(of))}.*" if of else ".*"
    for path in [*folder.glob(f"{pattern}.part"), *folder.glob(f"{pattern}.removed")]:
        with suppress(OSError):
            if time.time() - path.stat().st_mtime >= older_than:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _temporary(path: Path, ending: str) -> Path:
    """Return an unused hidden name in the same folder, short enough for every file system."""
    return path.with_name(f"{_hidden(path.name)}.{uuid.uuid4().hex[:8]}.{ending}")


def _hidden(name: str) -> str:
    return f".{name[:_NAME_LENGTH]}"


@contextmanager
def _out_of_the_way(folder: Path) -> Iterator[None]:
    """Rename a folder, if it exists; remove it when the block succeeds, and rename it back when it fails."""
    if not os.path.lexists(folder):
        yield
        return
    aside = _temporary(folder, "removed")
    move(folder, aside)
    try:
        yield
    except BaseException:
        move(aside, folder)
        raise
    if aside.is_symlink():
        aside.unlink()
    else:
        shutil.rmtree(aside, ignore_errors=True)


def _create(folder: Path) -> list[Path]:
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in created:
        flush(path.absolute().parent)
    return created


@contextmanager
def _temporary_folder(out: Path) -> Iterator[Path]:
    """Yield a folder beside `out`, removed at the end; if the block fails, created parents are removed as well."""
    temporary, created = _temporary(out, "part"), _create(out.parent)
    try:
        temporary.mkdir()
        yield temporary
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        remove_empty(created)
        raise
    shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _write_errors(out: Path) -> Iterator[None]:
    """Turn errors of writing into a `WriteError` that names the target."""
    try:
        yield
    except Exception as error:
        # For a full disk, safetensors raises its own class of error, and tokenizers a plain `Exception`.
        if not isinstance(error, OSError | SafetensorError) and type(error) is not Exception:
            raise
        text = getattr(error, "strerror", None) or str(error)
        hint = _("; make room") if any(os.strerror(code) in text for code in _FULL) else ""
        raise WriteError("cannot write {out}: {reason}{hint}", out=out, reason=text, hint=hint) from error


def _flush_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        flush(path)
    flush(folder)
