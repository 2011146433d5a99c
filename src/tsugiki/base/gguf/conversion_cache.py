"""Convert GGUF files to Hugging Face folders once, and keep the folders in the cache (see `io.cache`).

    ~/.cache/tsugiki/gguf/<digest of the file>-<versions>/             config, tokenizer, weights as safetensors
    ~/.cache/tsugiki/gguf/<digest of the file>.settings-<versions>/    config and tokenizer alone
    ~/.cache/tsugiki/gguf/known/                                       the digests of files, computed at their first use

A file is recognised by its inode, size and times, so only its first use reads all of it. A copy elsewhere has the same
digest and uses the same folder. Only one process converts at a time, since that takes much memory.

Quantised tensors are dequantised and rounded to float16. The rounding error is at most one part in 2,048 (or 3e-8), a
fraction of the error of the quantisation itself. Norms and biases, which the file stores in float32, are rounded as
well. Files in bfloat16 or float32 keep their dtype. The whole model is in memory during the conversion.
"""

from collections.abc import Callable
from importlib.metadata import version
from math import prod
from pathlib import Path

from tsugiki.base.gguf.conversion import conversion_dtype, read_model_header, write_folder, write_settings
from tsugiki.base.gguf.file import GgufHeader
from tsugiki.errors import TsugikiError, unreadable
from tsugiki.io.cache import another_place, cache_folder, check_room, has_entry, kept, lock_of, new_entry
from tsugiki.io.digests import combined_digest, file_state, tensor_digest
from tsugiki.io.formatting import format_size
from tsugiki.io.locks import locked
from tsugiki.language import _

_CACHE_VERSION = 3
"""Version of the converted folders. Increase it to convert again what an older release of Tsugiki has converted."""


def converted_folder(path: Path) -> Path:
    """Return the folder of the cache with a converted GGUF file, which is converted first if necessary."""
    return _entry(path, cache_folder("gguf") / _name(path), _convert)


def settings_folder(path: Path) -> Path:
    """Return a folder of the cache with the config and the tokenizer of a GGUF file; it may lack the weights."""
    converted = cache_folder("gguf") / _name(path)
    if converted.exists():
        return converted
    return _entry(path, cache_folder("gguf") / _name(path, ".settings"), write_settings)


def _name(path: Path, content: str = "") -> str:
    return f"{_digests(path)['file']}{content}-{_CACHE_VERSION}-{version('transformers')}"


def _entry(path: Path, folder: Path, convert: Callable[[Path, GgufHeader, Path], None]) -> Path:
    if has_entry(folder):
        return folder
    with another_place(), locked(lock_of(folder), folder):
        if not has_entry(folder):
            with new_entry(folder, {"file": path.name}) as temporary:
                convert(path, read_model_header(path), temporary)
    return folder


def gguf_fingerprint(path: Path) -> str:
    """Return `sha256:` and 64 digits over name, type, shape and quantised bytes of every tensor in a GGUF file."""
    return _digests(path)["tensors"]


def _digests(path: Path) -> dict[str, str]:
    """Return the digest of the whole `file` and the digest of its `tensors`; both are cached."""
    try:
        state = file_state(path.stat())
    except OSError as error:
        raise unreadable(path, error) from error
    digests: dict[str, str] = kept("gguf/known", repr(state), lambda: _compute_digests(path, read_model_header(path)))
    return digests


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
        raise TsugikiError("{path} cannot be read: {error}", path=path, error=error) from error


def _convert(path: Path, header: GgufHeader, folder: Path) -> None:
    """Convert a file, with a progress bar in a terminal and one line elsewhere."""
    from tsugiki.io.progress import ProgressDisplay

    size = sum(prod(tensor.shape) for tensor in header.tensors) * conversion_dtype(header).itemsize
    check_room(folder.parent, size)
    display = ProgressDisplay()
    label = _("converting {name} ({size})", name=path.name, size=format_size(path.stat().st_size))
    if display.is_quiet:
        display.print(_("{label}; the result is cached for later runs", label=label))
    with display.stage(label, len(header.tensors)) as advance:
        write_folder(path, header, folder, lambda: advance(1))
