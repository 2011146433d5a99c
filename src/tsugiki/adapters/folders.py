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
    part = out.with_name(f".{out.name[:40]}.{uuid.uuid4().hex[:8]}.part")
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


@contextmanager
def new_file(out: Path) -> Iterator[Path]:
    """A path beside `out` to write to; it becomes `out` when the block ends well, and is gone when it does not.

    Raises:
        TsugikiError: `out` is there already, its folder is not, or it cannot be written (a full disk, say).
    """
    if out.is_symlink() or out.exists():
        raise TsugikiError(f"{out} is there already; choose another name, or remove it first")
    if not out.absolute().parent.is_dir():
        raise TsugikiError(f"{out}: there is no folder {out.parent}; make it first")
    part = out.with_name(f".{out.name[:40]}.{uuid.uuid4().hex[:8]}.part")
    try:
        yield part
        part.rename(out)
    except OSError as error:
        raise TsugikiError(f"cannot write {out}: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)
