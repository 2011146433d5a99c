"""SHA-256 digests, written as `sha256:` and 64 hexadecimal digits, of bytes, of files and of tensors in files."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import BinaryIO

_CHUNK = 1 << 22  # bytes that are read at once


def sha256(parts: Iterable[bytes]) -> str:
    """The digest of these bytes, one after the other."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return f"sha256:{digest.hexdigest()}"


def sha256_bytes(content: bytes) -> bytes:
    """The digest as 32 bytes, for tables of many digests."""
    return hashlib.sha256(content).digest()


def file_sha256(path: Path) -> str:
    """The digest of a whole file.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def tensor_digest(file: BinaryIO, begin: int, end: int, description: str) -> str:
    """The digest, 64 hexadecimal digits, of a description and of the bytes of a file from `begin` to `end`.

    Raises:
        EOFError: the file ends before.
    """
    file.seek(begin)
    return sha256(chain([description.encode()], read_chunks(file, end - begin))).removeprefix("sha256:")


def combined_digest(digests: Mapping[str, str]) -> str:
    """One digest of named digests, in the order of their names."""
    return sha256(f"{name}\0{digests[name]}\n".encode("utf-8", "surrogateescape") for name in sorted(digests))


def read_chunks(file: BinaryIO, length: int) -> Iterator[bytes]:
    """The next `length` bytes of a file, a few megabytes at a time.

    Raises:
        EOFError: the file ends before.
    """
    while length:
        chunk = file.read(min(_CHUNK, length))
        if not chunk:
            raise EOFError(f"{file.name} ends too early; it is incomplete, or was changed while it was read")
        yield chunk
        length -= len(chunk)
