"""Folders and files that appear, and disappear, whole or not at all."""

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from tsugiki.errors import TsugikiError


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` to be filled; it becomes `out` when the block ends well, and is gone when it does not.

    Raises:
        TsugikiError: `out` is there and is no empty folder, or something cannot be written (a full disk, say).
    """
    refuse_taken(out)
    part = _hidden(out, "part")
    try:
        part.mkdir(parents=True)
        yield part
        if out.is_dir():
            out.rmdir()
        part.rename(out)
    except (OSError, SafetensorError) as error:  # safetensors says so when the disk is full
        raise TsugikiError(f"cannot write {out}: {getattr(error, 'strerror', None) or error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def refuse_taken(out: Path) -> None:
    """Ask that `out` can become a new folder: nothing is there, or an empty folder.

    Raises:
        TsugikiError: something is.
    """
    if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise TsugikiError(f"{out} is there already; choose another name, or remove it first")


def remove_folder(folder: Path) -> None:
    """Remove a folder and all that is in it; of a link to a folder the link alone.

    Raises:
        TsugikiError: it cannot be removed. If only something in it cannot, it is gone under its name.
    """
    gone = _hidden(folder, "removed")
    try:
        if folder.is_symlink():
            folder.unlink()
            return
        folder.rename(gone)
    except OSError as error:
        raise TsugikiError(f"cannot remove {folder}: {error.strerror or error}") from error
    try:
        shutil.rmtree(gone)
    except OSError as error:
        raise TsugikiError(f"{folder} is removed, but {gone} is left of it: {error.strerror or error}") from error


@contextmanager
def new_file(out: Path) -> Iterator[Path]:
    """A path beside `out` to write to; it becomes `out` when the block ends well, and is gone when it does not.

    Raises:
        TsugikiError: `out` is there already, its folder is not, or it cannot be written (a full disk, say).
    """
    try:
        there, nowhere = out.is_symlink() or out.exists(), not out.absolute().parent.is_dir()
    except OSError as error:  # a name that is too long, say
        raise TsugikiError(f"cannot write {out}: {error.strerror or error}") from error
    if there:
        raise TsugikiError(f"{out} is there already; choose another name, or remove it first")
    if nowhere:
        raise TsugikiError(f"{out}: there is no folder {out.parent}; make it first")
    part = _hidden(out, "part")
    try:
        yield part
        part.rename(out)
    except OSError as error:
        raise TsugikiError(f"cannot write {out}: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)


def _hidden(folder: Path, ending: str) -> Path:
    """A name beside the folder or file that no other has, and that fits where its own does."""
    return folder.with_name(f".{folder.name[:40]}.{uuid.uuid4().hex[:8]}.{ending}")
