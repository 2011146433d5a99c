"""SHA-256 digests of bytes, files, tensors and whole folders, written as `sha256:` and 64 hexadecimal digits.

`file_state` shows without reading a file whether it has changed since it was read.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from tsugiki.errors import TsugikiError
from tsugiki.io.atomic import write_text
from tsugiki.io.file_names import MANIFEST_FILE
from tsugiki.io.json import read_json, to_json_text, write_json
from tsugiki.language import _

FileState: TypeAlias = tuple[int, ...]
"""Numbers that change when a file is written or replaced: device, inode, size and times."""
_CHUNK = 1 << 22  # bytes read at once
_FORMAT = 1


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
    """Compute the digest of a file."""
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


def write_digest(path: Path) -> None:
    """Write the digest of a file beside it, to `NAME.sha256`, as `sha256sum` does."""
    write_text(_beside(path), f"{file_sha256(path).removeprefix('sha256:')}  {path.name}\n")


def check_digest(path: Path) -> bool:
    """Return whether the digest of a file was written; a TsugikiError says that the file has changed since."""
    try:
        written = _beside(path).read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    if changed_files(path.parent, {path.name: f"sha256:{written.partition(' ')[0]}"}):
        raise TsugikiError("{path} has changed since it was written; restore it, or start another run", path=path)
    return True


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def tensor_digest(file: BinaryIO, begin: int, end: int, description: str) -> str:
    """Compute the digest of a description and of a file from `begin` to `end`, as 64 hexadecimal digits.

    An EOFError says that the file ends too early.
    """
    file.seek(begin)
    return sha256(chain([description.encode()], read_chunks(file, end - begin))).removeprefix("sha256:")


def combined_digest(digests: Mapping[str, str]) -> str:
    """Combine named digests, sorted by name, into one digest."""
    return sha256(f"{name}\0{digests[name]}\n".encode("utf-8", "surrogateescape") for name in sorted(digests))


def read_chunks(file: BinaryIO, length: int) -> Iterator[bytes]:
    """Yield the next `length` bytes of a file in chunks of at most 4 MiB; an EOFError says that it ends too early."""
    while length:
        chunk = file.read(min(_CHUNK, length))
        if not chunk:
            raise EOFError(
                _("{name} ends too early: it is incomplete, or it was changed during reading", name=file.name)
            )
        yield chunk
        length -= len(chunk)


def write_manifest(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write `manifest.json` with the sizes and the SHA-256 digests of all files in a folder and its subfolders.

    The folder must be complete. `facts` about the files are JSON values. The manifest contains the digest of its own
    content as well, so a change of any bit in the folder is found.
    """
    files = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": file_sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST_FILE
    }
    content = {"format": _FORMAT, "files": files, "facts": dict(facts)}
    write_json(folder / MANIFEST_FILE, {**content, "sha256": sha256([_to_bytes(content)])})


def read_manifest(folder: Path) -> dict[str, Any]:
    """Check every file that the manifest of a folder lists, and return the facts.

    Files that the manifest does not list are ignored.
    """
    path = folder / MANIFEST_FILE
    content = read_json(path, missing=_("{folder} is incomplete: it has no {file}", folder=folder, file=MANIFEST_FILE))
    # Another spelling of the same values, such as 1E-5 for 1e-5, is a change as well.
    as_written = path.read_bytes() == _to_bytes(content)
    if content.pop("sha256", None) != sha256([_to_bytes(content)]) or not as_written:
        raise TsugikiError(
            "{folder} is damaged: {file} has changed since it was written", folder=folder, file=MANIFEST_FILE
        )
    if content.get("format") != _FORMAT:
        raise TsugikiError("{path} has a format that this version of Tsugiki cannot read", path=path)
    for name, written in content["files"].items():
        problem = _problem(folder / name, written)
        if problem:
            raise TsugikiError("{folder} is damaged: {name} {problem}", folder=folder, name=name, problem=problem)
    facts: dict[str, Any] = content["facts"]
    return facts


def _problem(path: Path, written: Mapping[str, Any]) -> str:
    """Return the problem with a file, as a predicate for a message; empty if there is none."""
    try:
        size = path.stat().st_size
        if size != written["size"]:
            return _("has {size:,} bytes instead of {expected:,}", size=size, expected=written["size"])
        return "" if file_sha256(path) == written["sha256"] else _("has changed since it was written")
    except FileNotFoundError:
        return _("is missing")
    except OSError as error:
        return _("cannot be read ({reason})", reason=error.strerror or error)


def _to_bytes(content: Mapping[str, Any]) -> bytes:
    return to_json_text(content).encode("utf-8", errors="replace")
