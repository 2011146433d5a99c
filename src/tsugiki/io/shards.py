"""Read a safetensors file tensor by tensor, and write a copy with changed tensors.

A file consists of 8 bytes with the length of a JSON header, the header, and the bytes of all tensors
(https://github.com/huggingface/safetensors#format). If all tensors keep their dtypes and shapes, the header stays the
same, so a copy can be written with only one tensor in memory. The safetensors library needs all tensors in memory.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tsugiki.errors import TsugikiError, error_text, unreadable
from tsugiki.io.digests import read_chunks

_ALIGNMENT = 8  # bytes; tensors begin at multiples of it
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
}


@dataclass(frozen=True)
class Entry:
    """The header's entry of one tensor."""

    dtype: str
    """The dtype's name in the format, such as BF16."""
    shape: tuple[int, ...]
    begin: int
    """The offset of the first byte in the file."""
    end: int
    """The offset after the last byte."""


@dataclass(frozen=True, eq=False)
class Shard:
    """A safetensors file of which only the header was read."""

    path: Path
    header: bytes
    """The bytes before the tensors."""
    entries: Mapping[str, Entry]
    """Key -> the tensor's entry, in the order of their offsets."""

    @property
    def size(self) -> int:
        """The file's size in bytes."""
        return max((entry.end for entry in self.entries.values()), default=len(self.header))


def read_shard(path: Path) -> Shard:
    """Read the header of a file; the safetensors library checks it against the file's size."""
    try:
        with safe_open(path, framework="pt"):
            pass
        with path.open("rb") as file:
            start = file.read(8)
            header = start + file.read(int.from_bytes(start, "little"))
        entries = _entries(json.loads(header[8:]), len(header))
    except FileNotFoundError as error:
        raise TsugikiError("{path} is missing", path=path) from error
    except (OSError, SafetensorError, ValueError) as error:
        raise TsugikiError("{path} is broken: {error}", path=path, error=error_text(error)) from error
    return Shard(path, header, entries)


def _entries(header: Mapping[str, Any], start: int) -> dict[str, Entry]:
    found = {
        key: Entry(fields["dtype"], tuple(fields["shape"]), *(start + offset for offset in fields["data_offsets"]))
        for key, fields in header.items()
        if key != "__metadata__"
    }
    return dict(sorted(found.items(), key=lambda item: (item[1].begin, item[1].end)))


def dtype_name(dtype: torch.dtype) -> str:
    """Return the format's name for a dtype, or torch's name if the format has none."""
    return next((name for name, known in _DTYPES.items() if known == dtype), str(dtype))


def is_float(entry: Entry) -> bool:
    """Return whether the tensor has a floating-point dtype of 16 bits or more, so that it is not quantised."""
    return entry.dtype in ("F64", "F32", "F16", "BF16")


def read_tensor(shard: Shard, key: str) -> Tensor:
    """Read one floating-point tensor."""
    entry = shard.entries[key]
    if entry.dtype not in _DTYPES:
        raise TsugikiError(
            "{key} in {path} has the dtype {dtype}, which is not floating-point",
            key=key,
            path=shard.path,
            dtype=entry.dtype,
        )
    buffer = bytearray(entry.end - entry.begin)
    try:
        with shard.path.open("rb") as file:
            file.seek(entry.begin)
            complete = file.readinto(buffer) == len(buffer)
    except OSError as error:
        raise unreadable(shard.path, error) from error
    if not complete:
        raise TsugikiError("{path} ends too early; it was changed while it was read", path=shard.path)
    content = torch.frombuffer(buffer, dtype=torch.uint8) if buffer else torch.empty(0, dtype=torch.uint8)
    return content.view(_DTYPES[entry.dtype]).view(entry.shape)


def write_shard(
    shard: Shard,
    out: Path,
    changed: Mapping[str, Callable[[], Tensor]],
    added: Mapping[str, tuple[str, Callable[[], Tensor]]],
    advance: Callable[[int], None],
) -> None:
    """Write a copy of the file, `out`, in which some tensors are changed, and others are added at the end.

    `changed` maps keys to functions that return the new tensors, which have the dtypes and shapes of the old ones;
    `added` maps a new key to the key of a tensor of the same dtype and shape, and to such a function. `advance` is
    called with the number of bytes of `shard` that were written since the last call.
    """
    with shard.path.open("rb") as source, out.open("xb") as target:
        target.write(_header_with(shard, {key: like for key, (like, _) in added.items()}))
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


def _header_with(shard: Shard, added: Mapping[str, str]) -> bytes:
    """Return the header with added tensors (new key -> key of a tensor of the same dtype and shape) at the end."""
    if not added:
        return shard.header
    fields = json.loads(shard.header[8:])
    end = shard.size - len(shard.header)
    for key, like in added.items():
        entry = shard.entries[like]
        begin, end = end, end + entry.end - entry.begin
        fields[key] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": [begin, end]}
    text = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
