"""A file of weights, safetensors, read tensor by tensor and written anew with some of them changed.

A file is 8 bytes that give the length of a JSON header, the header, and the tensors' bytes one after the other
(https://github.com/huggingface/safetensors#format). One whose tensors keep their types and shapes keeps its header to
the byte, so it can be written as it is read, with no more than a tensor in memory; the library itself writes files
whose tensors are all there at once.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from tsugiki.errors import TsugikiError
from tsugiki.io.digests import read_chunks

_ALIGNED = 8  # bytes; where tensors begin
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
}


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies in a file."""

    dtype: str
    """As the format calls it."""
    shape: tuple[int, ...]
    begin: int
    """Its first byte, counted from the beginning of the file."""
    end: int


@dataclass(frozen=True, eq=False)
class Shard:
    """One safetensors file, its tensors unread."""

    path: Path
    header: bytes
    """All before the tensors."""
    entries: Mapping[str, Entry]
    """In the order of their bytes."""

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return max((entry.end for entry in self.entries.values()), default=len(self.header))


def read_shard(path: Path) -> Shard:
    """The header of one file, held against the file's length.

    Raises:
        TsugikiError: no such file, or one that is not whole.
    """
    try:
        with path.open("rb") as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            total = path.stat().st_size
            if len(start) < 8 or length > total - 8:
                raise ValueError("it is cut short")
            header = file.read(length)
        entries = _entries(json.loads(header), 8 + length)
        last = max((entry.end for entry in entries.values()), default=8 + length)
        if last != total:
            raise ValueError(f"it has {total:,} bytes, and its header speaks of {last:,}")
    except FileNotFoundError as error:
        raise TsugikiError(f"{path} is missing") from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise TsugikiError(f"{path} is broken: {error}") from error
    return Shard(path, start + header, entries)


def _entries(header: Mapping[str, Any], start: int) -> dict[str, Entry]:
    found = {
        key: Entry(entry["dtype"], tuple(entry["shape"]), *(start + int(at) for at in entry["data_offsets"]))
        for key, entry in header.items()
        if key != "__metadata__"
    }
    ordered = dict(sorted(found.items(), key=lambda item: (item[1].begin, item[1].end)))
    if ordered and next(iter(ordered.values())).begin != start:
        raise ValueError("its tensors do not begin where its header ends")
    if any(one.end != other.begin for one, other in pairwise(ordered.values())):
        raise ValueError("its tensors do not lie one after the other")
    return ordered


def is_float(entry: Entry) -> bool:
    """Whether the tensor holds numbers that stand for themselves, in 16 bits or more."""
    return entry.dtype in ("F64", "F32", "F16", "BF16")


def read_tensor(shard: Shard, key: str) -> Tensor:
    """One tensor of floating-point numbers, in a memory of its own.

    Raises:
        TsugikiError: its type is none of these, or the file cannot be read.
    """
    entry = shard.entries[key]
    if entry.dtype not in _DTYPES:
        raise TsugikiError(f"{key} in {shard.path} is of {entry.dtype}, no floating-point numbers")
    dtype = _DTYPES[entry.dtype]
    buffer = bytearray(entry.end - entry.begin)
    try:
        with shard.path.open("rb") as file:
            file.seek(entry.begin)
            whole = file.readinto(buffer) == len(buffer)
    except OSError as error:
        raise TsugikiError(f"{shard.path} cannot be read: {error.strerror or error}") from error
    if not whole:
        raise TsugikiError(f"{shard.path} became shorter while it was read")
    return (torch.frombuffer(buffer, dtype=dtype) if buffer else torch.empty(0, dtype=dtype)).view(entry.shape)


def write_shard(
    shard: Shard,
    out: Path,
    changed: Mapping[str, Callable[[], Tensor]],
    added: Mapping[str, tuple[str, Callable[[], Tensor]]],
    advance: Callable[[int], None],
) -> None:
    """Write the file anew, tensor after tensor; what is not changed is copied to the byte.

    Args:
        shard: the file.
        out: the new one.
        changed: key -> what makes the new tensor, of the old one's type and shape.
        added: new key -> the key of a tensor of its type and shape, and what makes it; they come last.
        advance: called with the number of bytes of `shard` done since the last call.

    Raises:
        TsugikiError: `shard` cannot be read.
        OSError: `out` cannot be written.
    """
    with shard.path.open("rb") as source, out.open("xb") as target:
        target.write(_with(shard, {key: like for key, (like, _) in added.items()}))
        advance(len(shard.header))
        for key, entry in shard.entries.items():
            if key in changed:
                _write_tensor(target, changed[key](), entry)
                advance(entry.end - entry.begin)
            else:
                source.seek(entry.begin)
                try:
                    for chunk in read_chunks(source, entry.end - entry.begin):
                        target.write(chunk)
                        advance(len(chunk))
                except EOFError as error:
                    raise TsugikiError(str(error)) from error
        for like, make in added.values():
            _write_tensor(target, make(), shard.entries[like])


def _write_tensor(target: BinaryIO, tensor: Tensor, entry: Entry) -> None:
    assert tensor.dtype == _DTYPES[entry.dtype]
    assert tuple(tensor.shape) == entry.shape
    target.write(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)


def _with(shard: Shard, added: Mapping[str, str]) -> bytes:
    """The header with these tensors after all others; the file's own where there are none."""
    if not added:
        return shard.header
    fields = json.loads(shard.header[8:])
    end = shard.size - len(shard.header)
    for key, like in added.items():
        entry = shard.entries[like]
        begin, end = end, end + entry.end - entry.begin
        fields[key] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": [begin, end]}
    text = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNED)
    return len(text).to_bytes(8, "little") + text
