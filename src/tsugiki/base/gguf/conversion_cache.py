"""Convert GGUF files to Hugging Face folders once, and keep the folders in a cache.

    ~/.cache/tsugiki/gguf/<digest of the file>-<versions>/    config, tokenizer, weights as safetensors
    ~/.cache/tsugiki/gguf/known/<identity>.json               the digests of a file that was read before

A file is recognised by its inode, size and times, so only its first use reads all of it. A copy elsewhere has the same
digest and uses the same folder.

Quantised tensors are dequantised and rounded to float16. The rounding error is at most one part in 2,048 (or 3e-8), a
fraction of the error of the quantisation itself. Norms and biases, which the file stores in float32, are rounded as
well. Files in bfloat16 or float32 keep their dtype. The whole model is in memory during the conversion.
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

from tsugiki.base.gguf.conversion import conversion_dtype, read_model_header, write_folder
from tsugiki.base.gguf.file import GgufHeader
from tsugiki.errors import TsugikiError
from tsugiki.io.cache import cache_folder
from tsugiki.io.digests import combined_digest, digest_part

_CACHE_VERSION = 1
"""Version of the converted folders. Increase it to convert again what an older release of Tsugiki has converted."""
_TEMPORARY = ".part"
_DAY = 24 * 60 * 60


def converted_folder(path: Path) -> Path:
    """Return the folder in the cache that a GGUF file is converted to. The file is converted if that was not done yet.

    Raises:
        TsugikiError: the file is not a model that can be converted, the gguf package is not installed, or the cache
            cannot be written.
    """
    name = f"{_digests(path)['file']}-{_CACHE_VERSION}-{version('transformers')}"
    folder = cache_folder("gguf") / name
    if not folder.is_dir():
        _convert(path, folder)
    return folder


def gguf_fingerprint(path: Path) -> str:
    """Return `sha256:` and 64 digits over name, type, shape and quantised bytes of every tensor in a GGUF file.

    Raises:
        TsugikiError: as for `converted_folder`.
    """
    return _digests(path)["tensors"]


def _digests(path: Path) -> dict[str, str]:
    """Return the digest of the whole `file` and the digest of its `tensors`; both are cached."""
    cached = cache_folder("gguf") / "known" / f"{_identity(path)}.json"
    try:
        stored = json.loads(cached.read_text())
        return {name: stored[name] for name in ("file", "tensors")}
    except (OSError, ValueError, KeyError, TypeError):
        digests = _compute_digests(path, read_model_header(path))
    temporary = cached.with_name(f".{cached.name}.{uuid.uuid4().hex[:8]}")
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(digests))
        os.replace(temporary, cached)
    except OSError as error:
        raise _write_error(cached.parent, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink()
    return digests


def _identity(path: Path) -> str:
    """Return a digest of the inode, size and times of a file, which change when the file does."""
    try:
        state = path.stat()
    except OSError as error:
        raise TsugikiError(f"{path} cannot be read: {error.strerror or error}") from error
    facts = (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:32]


def _compute_digests(path: Path, header: GgufHeader) -> dict[str, str]:
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


def _convert(path: Path, folder: Path) -> None:
    """Convert a GGUF file to `folder`, which appears complete or not at all."""
    header = read_model_header(path)
    temporary = folder.with_name(f".{uuid.uuid4().hex}{_TEMPORARY}")
    try:
        temporary.mkdir(parents=True)
        _check_disk_space(path, header, temporary)
        with _conversion_progress(path, len(header.tensors)) as advance:
            write_folder(path, header, temporary, advance)
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process has converted the same file in the meantime
                raise
    except OSError as error:
        raise _write_error(folder.parent, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _remove_outdated(folder)


def _remove_outdated(folder: Path) -> None:
    """Remove what other versions converted from the same file, and what killed processes left more than a day ago."""
    other_versions = folder.parent.glob(f"{folder.name.partition('-')[0]}-*")
    leftovers = folder.parent.glob(f".*{_TEMPORARY}")
    outdated = [path for path in other_versions if path != folder] + [path for path in leftovers if _age(path) > _DAY]
    for path in outdated:
        shutil.rmtree(path, ignore_errors=True)


def _age(path: Path) -> float:
    """Return the seconds since a file was last added to a folder; 0 if the folder is gone."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _check_disk_space(path: Path, header: GgufHeader, folder: Path) -> None:
    needed = sum(prod(tensor.shape) for tensor in header.tensors) * conversion_dtype(header).itemsize
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise TsugikiError(
            f"{path} needs {needed / 1e9:.2g} GB when it is converted, and {folder.parent} has {free / 1e9:.2g} GB "
            "left; free some space, or set XDG_CACHE_HOME to another folder"
        )


@contextmanager
def _conversion_progress(path: Path, tensors: int) -> Iterator[Callable[[], None]]:
    """Show a progress bar in a terminal and one line elsewhere; yields the function to call after each tensor."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.text import Text

    console = Console(stderr=True, highlight=False)
    label = f"converting {path.name} ({path.stat().st_size / 1e6:,.0f} MB)"
    if not console.is_terminal:
        console.print(Text(f"{label}; the result is cached for later runs"), soft_wrap=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(label, total=None)
        yield lambda: progress.update(task, total=tensors, advance=1)


def _write_error(folder: Path, error: OSError) -> TsugikiError:
    return TsugikiError(
        f"cannot write {folder}: {error.strerror or error}; XDG_CACHE_HOME sets where converted models are kept"
    )
