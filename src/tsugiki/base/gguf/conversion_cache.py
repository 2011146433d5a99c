"""A GGUF file as a base model: unpacked once into a Transformers folder in the cache, and used from there.

    ~/.cache/tsugiki/gguf/<digest of the file>-<versions>/    config, tokenizer, weights as safetensors
    ~/.cache/tsugiki/gguf/known/<identity>.json               the digests of a file that was seen before

A file is known again by its place on the disk, its size and its times, so that only the first start reads it whole; a
copy of it elsewhere has the same digest and the same folder.

The weights are stored in 16 bits. Blocks of quantised numbers are multiplied out and rounded to float16, by at most
one part in 2,048 (or 3e-8): a fraction of the error that quantising them made. Norms and biases, which the file has
in float32, are rounded as well. A file of bfloat16 or float32 is kept in that. While it is unpacked, all of the model
is in memory.
"""

import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from math import prod
from pathlib import Path

from tsugiki.base.gguf.conversion import read_model_header, stored_dtype, write_folder
from tsugiki.base.gguf.file import GgufHeader
from tsugiki.errors import TsugikiError
from tsugiki.io.cache import cache_folder
from tsugiki.io.digests import combined_digest, digest_part

_FORM = 1
"""Of what is unpacked: a higher number unpacks anew what an older Tsugiki has unpacked."""
_PART = ".part"
_DAY = 24 * 60 * 60


def converted_folder(path: Path) -> Path:
    """The folder, in the cache, with the model of a GGUF file as Transformers stores one; made where it is not there.

    Raises:
        TsugikiError: the file is no model that can be read, the gguf package is not there, or the cache cannot be
            written.
    """
    name = f"{_digests(path)['file']}-{_FORM}-{version('transformers')}"
    folder = cache_folder("gguf") / name
    if not folder.is_dir():
        _make_folder(path, folder)
    return folder


def gguf_fingerprint(path: Path) -> str:
    """`sha256:` and 64 digits over name, type, shape and packed bytes of every tensor in the file.

    Raises:
        TsugikiError: as for `converted_folder`.
    """
    return _digests(path)["tensors"]


def _digests(path: Path) -> dict[str, str]:
    """Of the whole file (`file`) and of its tensors alone (`tensors`); a file that is known is not read."""
    known = cache_folder("gguf") / "known" / f"{_identity(path)}.json"
    try:
        stored = json.loads(known.read_text())
        return {name: stored[name] for name in ("file", "tensors")}
    except (OSError, ValueError, KeyError, TypeError):
        digests = _digest(path, read_model_header(path))
    part = known.with_name(f".{known.name}.{uuid.uuid4().hex[:8]}")
    try:
        known.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(digests))
        os.replace(part, known)
    except OSError as error:
        raise _not_written(known.parent, error) from error
    finally:
        with suppress(OSError):
            part.unlink()
    return digests


def _identity(path: Path) -> str:
    """What changes when a file does."""
    try:
        state = path.stat()
    except OSError as error:
        raise TsugikiError(f"{path} cannot be read: {error.strerror or error}") from error
    facts = (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:32]


def _digest(path: Path, header: GgufHeader) -> dict[str, str]:
    try:
        with path.open("rb") as file:
            tensors = {
                tensor.name: digest_part(file, tensor.begin, tensor.end, f"{tensor.type.name} {list(tensor.shape)} ")
                for tensor in header.tensors
            }
            combined = combined_digest(tensors)
            return {"file": digest_part(file, 0, header.size, combined), "tensors": combined}
    except (OSError, EOFError) as error:
        raise TsugikiError(f"{path} cannot be read: {error}") from error


def _make_folder(path: Path, folder: Path) -> None:
    """Write the folder beside its place first, so that it is there whole or not at all."""
    header = read_model_header(path)
    part = folder.with_name(f".{uuid.uuid4().hex}{_PART}")
    try:
        part.mkdir(parents=True)
        _check_room(path, header, part)
        with _unpacking(path, len(header.tensors)) as advance:
            write_folder(path, header, part, advance)
        try:
            part.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was first, with the same
                raise
    except OSError as error:
        raise _not_written(folder.parent, error) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    _clear(folder)


def _clear(folder: Path) -> None:
    """Remove what another version unpacked of the same file, and what processes that were killed left behind."""
    others = folder.parent.glob(f"{folder.name.partition('-')[0]}-*")
    left = folder.parent.glob(f".*{_PART}")
    for old in [*(other for other in others if other != folder), *(part for part in left if _age(part) > _DAY)]:
        shutil.rmtree(old, ignore_errors=True)


def _age(path: Path) -> float:
    """Seconds since something was put into the folder; 0 where it is gone."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _check_room(path: Path, header: GgufHeader, folder: Path) -> None:
    needed = sum(prod(tensor.shape) for tensor in header.tensors) * stored_dtype(header).itemsize
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise TsugikiError(
            f"{path} takes {needed / 1e9:.2g} GB unpacked, and {folder.parent} has {free / 1e9:.2g} GB left; "
            "make room, or set XDG_CACHE_HOME to another place"
        )


@contextmanager
def _unpacking(path: Path, tensors: int) -> Iterator[Callable[[], None]]:
    """A bar in a terminal, a line elsewhere; yields what to call when a tensor is done."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.text import Text

    console = Console(stderr=True, highlight=False)
    label = f"unpacking {path.name} ({path.stat().st_size / 1e6:,.0f} MB)"
    if not console.is_terminal:
        console.print(Text(f"{label}; later starts are quick"), soft_wrap=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(label, total=None)
        yield lambda: progress.update(task, total=tensors, advance=1)


def _not_written(folder: Path, error: OSError) -> TsugikiError:
    return TsugikiError(
        f"cannot write {folder}: {error.strerror or error}; XDG_CACHE_HOME says where unpacked models are kept"
    )
