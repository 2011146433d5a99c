"""SHA-256 digests of bytes, files and tensors, written as `sha256:` and 64 hexadecimal digits.

`file_state` shows without reading a file whether it has changed since it was read.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import BinaryIO, TypeAlias

from tsugiki.language import _

FileState: TypeAlias = tuple[int, ...]
"""Numbers that change when a file is written or replaced: device, inode, size and times."""
_CHUNK = 1 << 22  # bytes read at once


def file_state(status: os.stat_result) -> FileState:
    """Return the state of the file with this `Path.stat()`."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def sha256(parts: Iterable[bytes | memoryview]) -> str:
    """Compute the digest of the concatenation of `parts`."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return f"sha256:{digest.hexdigest()}"


def sha256_bytes(content: bytes) -> bytes:
    """Compute the digest as 32 bytes, for tables of many digests."""
    return hashlib.sha256(content).digest()


def file_sha256(path: Path) -> str:
    """Compute the digest of a file.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def changed_files(folder: Path, digests: Mapping[str, str]) -> list[str]:
    """Return the names of the files in a folder that are missing, cannot be read, or do not have these digests."""

    def is_changed(name: str) -> bool:
        try:
            return file_sha256(folder / name) != digests[name]
        except OSError:
            return True

    return [name for name in digests if is_changed(name)]


def tensor_digest(file: BinaryIO, begin: int, end: int, description: str) -> str:
    """Compute the digest of a description and of the bytes of a file from `begin` to `end`, as 64 hexadecimal digits.

    Raises:
        EOFError: the file ends too early.
    """
    file.seek(begin)
    return sha256(chain([description.encode()], read_chunks(file, end - begin))).removeprefix("sha256:")


def combined_digest(digests: Mapping[str, str]) -> str:
    """Combine named digests, sorted by name, into one digest."""
    return sha256(f"{name}\0{digests[name]}\n".encode("utf-8", "surrogateescape") for name in sorted(digests))


def read_chunks(file: BinaryIO, length: int) -> Iterator[bytes]:
    """Yield the next `length` bytes of a file in chunks of at most 4 MiB.

    Raises:
        EOFError: the file ends too early.
    """
    while length:
        chunk = file.read(min(_CHUNK, length))
        if not chunk:
            raise EOFError(
                _("{name} ends too early: it is incomplete, or it was changed during reading").format(name=file.name)
            )
        yield chunk
        length -= len(chunk)
