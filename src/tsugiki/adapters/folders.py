"""Folders and files that appear whole or not at all."""

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
    if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise TsugikiError(f"{out} is there already; choose another name, or remove it first")
    part = _beside(out)
    try:
        part.mkdir(parents=True)
        yield part
        if out.is_dir():
            out.rmdir()
        part.rename(out)
    except (OSError, SafetensorError) as error:  # safetensors says so when the disk is full
        raise _not_written(out, error) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextmanager
def new_file(out: Path) -> Iterator[Path]:
    """The name of a file beside `out` to be written; it becomes `out` when the block ends well, and is gone otherwise.

    Raises:
        TsugikiError: `out` is there, or something cannot be written (a full disk, say).
    """
    if out.is_symlink() or out.exists():
        raise TsugikiError(f"{out} is there already; choose another name, or remove it first")
    part = _beside(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        yield part
        part.rename(out)
    except OSError as error:
        raise _not_written(out, error) from error
    finally:
        part.unlink(missing_ok=True)


def _beside(out: Path) -> Path:
    return out.with_name(f".{out.name[:40]}.{uuid.uuid4().hex[:8]}.part")


def _not_written(out: Path, error: Exception) -> TsugikiError:
    return TsugikiError(f"cannot write {out}: {getattr(error, 'strerror', None) or error}")
