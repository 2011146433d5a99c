"""Convert GGUF files to Hugging Face folders once, and keep the folders in a cache.

    ~/.cache/tsugiki/gguf/<digest of the file>-<versions>/    config, tokenizer, weights as safetensors
    ~/.cache/tsugiki/gguf/<digest of the file>-<versions>-settings/    config and tokenizer alone
    ~/.cache/tsugiki/gguf/known/<identity>.json               the digests of a file, computed at its first use

A file is recognised by its inode, size and times, so only its first use reads all of it. A copy elsewhere has the same
digest and uses the same folder. Several processes can use the cache: only one of them converts at a time, since that
takes much memory. A folder is compared with its manifest once in a process; a damaged one is converted again.

Quantised tensors are dequantised and rounded to float16. The rounding error is at most one part in 2,048 (or 3e-8), a
fraction of the error of the quantisation itself. Norms and biases, which the file stores in float32, are rounded as
well. Files in bfloat16 or float32 keep their dtype. The whole model is in memory during the conversion.
"""

import functools
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from math import prod
from pathlib import Path

from tsugiki.base.gguf.conversion import conversion_dtype, read_model_header, write_folder, write_settings
from tsugiki.base.gguf.file import GgufHeader
from tsugiki.errors import TsugikiError
from tsugiki.io.atomic import DAY, new_folder, remove_leftovers
from tsugiki.io.cache import cache_folder, read_kept, write_kept
from tsugiki.io.digests import combined_digest, sha256, tensor_digest
from tsugiki.io.file_state import file_state
from tsugiki.io.formatting import format_size
from tsugiki.io.locks import locked
from tsugiki.io.manifest import read_manifest, write_manifest
from tsugiki.language import _

_CACHE_VERSION = 2
"""Version of the converted folders. Increase it to convert again what an older release of Tsugiki has converted."""


def converted_folder(path: Path) -> Path:
    """Return the folder of the cache with a converted GGUF file, which is converted first if necessary.

    Raises:
        TsugikiError: the file is not a model that can be converted, the gguf package is not installed, or the cache
            cannot be written.
    """
    return _folder(path, "", _convert)


def settings_folder(path: Path) -> Path:
    """Return a folder of the cache with the config and the tokenizer of a GGUF file; it may lack the weights.

    Raises:
        TsugikiError: as for `converted_folder`.
    """
    converted = cache_folder("gguf") / _name(path)
    return converted if converted.exists() else _folder(path, "-settings", _convert_settings)


def _folder(path: Path, suffix: str, convert: Callable[[Path, Path], None]) -> Path:
    name = _name(path) + suffix
    folder = cache_folder("gguf") / name
    if _is_intact(folder):
        return folder
    with locked(folder.parent / ".lock"):
        remove_leftovers(folder.parent, of=name)  # left by killed processes, since running ones wait for the lock
        if not _is_intact(folder):
            convert(path, folder)
    return folder


def _name(path: Path) -> str:
    return f"{_digests(path)['file']}-{_CACHE_VERSION}-{version('transformers')}"


def _is_intact(folder: Path) -> bool:
    """Return whether a folder exists and is as it was written; a warning names a damaged folder."""
    try:
        _check(folder, folder.stat().st_ino)
    except FileNotFoundError:
        return False
    except TsugikiError as error:
        warnings.warn(_("{error}; it is converted again").format(error=error), stacklevel=2)
        return False
    return True


@functools.lru_cache(maxsize=8)
def _check(folder: Path, inode: int) -> None:
    """Compare a folder with its manifest; if it is intact, later calls do not compare it again."""
    if read_manifest(folder).get("folder") != folder.name:
        raise TsugikiError(_("{folder} holds another model").format(folder=folder))


def gguf_fingerprint(path: Path) -> str:
    """Return `sha256:` and 64 digits over name, type, shape and quantised bytes of every tensor in a GGUF file.

    Raises:
        TsugikiError: as for `converted_folder`.
    """
    return _digests(path)["tensors"]


def _digests(path: Path) -> dict[str, str]:
    """Return the digest of the whole `file` and the digest of its `tensors`; both are cached."""
    key = _identity(path)
    cached = cache_folder("gguf") / "known" / f"{key[:32]}.json"
    stored: dict[str, str] | None = read_kept(cached, key)
    if stored is not None:
        return stored
    digests = _compute_digests(path, read_model_header(path))
    try:
        write_kept(cached, key, digests)
    except TsugikiError as error:
        raise _write_error(error) from error
    return digests


def _identity(path: Path) -> str:
    """Return a digest of the inode, size and times of a file, which change when the file does."""
    try:
        state = file_state(path.stat())
    except OSError as error:
        raise TsugikiError(
            _("{path} cannot be read: {reason}").format(path=path, reason=error.strerror or error)
        ) from error
    return sha256([repr(state).encode()]).removeprefix("sha256:")


def _compute_digests(path: Path, header: GgufHeader) -> dict[str, str]:
    try:
        with path.open("rb") as file:
            tensors = {
                tensor.name: tensor_digest(file, tensor.begin, tensor.end, f"{tensor.type.name} {list(tensor.shape)} ")
                for tensor in header.tensors
            }
            combined = combined_digest(tensors)
            return {"file": tensor_digest(file, 0, header.size, combined), "tensors": combined}
    except (OSError, EOFError) as error:
        raise TsugikiError(_("{path} cannot be read: {error}").format(path=path, error=error)) from error


def _convert(path: Path, folder: Path) -> None:
    header = read_model_header(path)
    with _new_folder(path, folder) as temporary:
        _check_disk_space(path, header, temporary)
        with _conversion_progress(path, len(header.tensors)) as advance:
            write_folder(path, header, temporary, lambda: advance(1))


def _convert_settings(path: Path, folder: Path) -> None:
    header = read_model_header(path)
    with _new_folder(path, folder) as temporary:
        write_settings(path, header, temporary)


@contextmanager
def _new_folder(path: Path, folder: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `folder`, with a manifest, if the block ends without an error."""
    try:
        with new_folder(folder, replace=True) as temporary:
            yield temporary
            write_manifest(temporary, {"folder": folder.name, "file": path.name})
    except TsugikiError as error:
        raise _write_error(error) if isinstance(error.__cause__, OSError) else error from error.__cause__
    _remove_outdated(path, folder)


def _remove_outdated(path: Path, folder: Path) -> None:
    """Remove what other versions converted from the same file, and what killed processes left more than a day ago."""
    current = _name(path)
    for other in folder.parent.glob(f"{current.partition('-')[0]}-*"):
        if other.name not in (current, f"{current}-settings"):
            shutil.rmtree(other, ignore_errors=True)
    remove_leftovers(folder.parent, older_than=DAY)


def _check_disk_space(path: Path, header: GgufHeader, folder: Path) -> None:
    needed = sum(prod(tensor.shape) for tensor in header.tensors) * conversion_dtype(header).itemsize
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise TsugikiError(
            _(
                "{path} needs {needed} when it is converted, and {folder} has {free} left; free some space, or set "
                "XDG_CACHE_HOME to another folder"
            ).format(path=path, needed=format_size(needed), folder=folder.parent, free=format_size(free))
        )


@contextmanager
def _conversion_progress(path: Path, tensors: int) -> Iterator[Callable[[int], None]]:
    """Show a progress bar in a terminal and one line elsewhere; yield a function that counts converted tensors."""
    from tsugiki.io.progress import ProgressDisplay

    display = ProgressDisplay()
    label = _("converting {name} ({size})").format(name=path.name, size=format_size(path.stat().st_size))
    if display.is_quiet:
        display.print(_("{label}; the result is cached for later runs").format(label=label))
    with display.stage(label, tensors) as advance:
        yield advance


def _write_error(error: TsugikiError) -> TsugikiError:
    return TsugikiError(_("{error}; XDG_CACHE_HOME sets where converted models are kept").format(error=error))
