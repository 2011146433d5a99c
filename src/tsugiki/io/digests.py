"""Digests of tensors as files hold them: what a fingerprint is made of."""

import hashlib
from collections.abc import Mapping
from typing import BinaryIO

_CHUNK = 1 << 22


def digest_part(file: BinaryIO, begin: int, end: int, described: str) -> str:
    """SHA-256, in hexadecimal, of a description and of the bytes of the file from `begin` to `end`.

    Raises:
        EOFError: the file ends before.
    """
    digest = hashlib.sha256(described.encode())
    file.seek(begin)
    while begin < end:
        chunk = file.read(min(_CHUNK, end - begin))
        if not chunk:
            raise EOFError(f"{file.name} is cut short")
        digest.update(chunk)
        begin += len(chunk)
    return digest.hexdigest()


def combined_digest(digests: Mapping[str, str]) -> str:
    """`sha256:` and 64 digits over named digests, in the order of their names."""
    total = hashlib.sha256()
    for name in sorted(digests):
        total.update(f"{name}\0{digests[name]}\n".encode())
    return f"sha256:{total.hexdigest()}"
