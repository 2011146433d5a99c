"""What a GGUF file says of itself: its metadata, and where its tensors lie. Nothing of the tensors is read.

    magic, version, counts | metadata: key, type, value | tensors: name, dimensions, type, offset | padding | data

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The gguf package has a reader too; it makes an
array of every string (ten seconds for the 262,144 tokens of Gemma) and does not see that a file is cut short.
"""

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsugiki.errors import TsugikiError

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_ALIGNMENT = 32
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of the file."""

    name: str
    type: "GGMLQuantizationType"
    shape: tuple[int, ...]
    """As torch orders it: rows first. The file has it the other way round."""
    begin: int
    end: int
    """Its bytes, counted from the start of the file."""


@dataclass(frozen=True)
class GgufHeader:
    """All of a file but the bytes of its tensors."""

    metadata: Mapping[str, Any]
    """Numbers, texts, truth values, and lists of these."""
    tensors: tuple[GgufTensor, ...]
    size: int
    """Of all that stands before the first tensor's bytes."""

    @property
    def architecture(self) -> str:
        """llama.cpp's name of it; empty where the file has none."""
        return str(self.metadata.get("general.architecture", ""))

    def setting(self, key: str, default: Any = None) -> Any:
        """A value that the file has under its architecture's name, such as `attention.head_count`."""
        return self.metadata.get(f"{self.architecture}.{key}", default)


def is_gguf(path: Path) -> bool:
    """Whether the file begins as a GGUF file does."""
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def read_header(path: Path) -> GgufHeader:
    """The header of a GGUF file, each tensor's bytes found to be within the file.

    Raises:
        TsugikiError: the gguf package is not there, or the file is no GGUF file, is cut short or damaged, or cannot be
            read.
    """
    try:
        if not is_gguf(path):
            raise TsugikiError(f"{path} is no GGUF file: it does not begin with the letters GGUF")
        require_gguf()
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _parse(path, data)
    except OSError as error:
        raise TsugikiError(f"{path} cannot be read: {error.strerror or error}") from error


def require_gguf() -> None:
    """Ask that the gguf package is there.

    Raises:
        TsugikiError: it is not.
    """
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise TsugikiError("a GGUF file needs the gguf package: pip install 'tsugiki[gguf]'") from error


class _Cursor:
    """Reads one value after the other."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path = path
        self.data = data
        self.at = len(MAGIC)

    def skip(self, length: int) -> int:
        """Where `length` bytes begin; the cursor stands behind them."""
        begin, self.at = self.at, self.at + length
        if self.at > len(self.data):
            raise TsugikiError(f"{self.path} is cut short or damaged: it ends within its header; fetch it again")
        return begin

    def numbers(self, format: str, count: int = 1) -> tuple[Any, ...]:
        """`count` numbers of one of struct's formats."""
        return struct.unpack_from(f"<{count}{format}", self.data, self.skip(count * struct.calcsize(f"<{format}")))

    def number(self, format: str) -> Any:
        """One number."""
        return self.numbers(format)[0]

    def text(self) -> str:
        """A length and so many bytes of UTF-8."""
        begin = self.skip(self.number("Q"))
        return self.data[begin : self.at].decode(errors="replace")

    def value(self, type: int) -> Any:
        """A value of metadata."""
        if type in _NUMBERS:
            return self.number(_NUMBERS[type])
        if type == _STRING:
            return self.text()
        if type != _ARRAY:
            raise TsugikiError(f"{self.path} is damaged: its header has a value of the unknown type {type}")
        element, count = self.number("I"), self.number("Q")
        if element in _NUMBERS:
            return list(self.numbers(_NUMBERS[element], count))
        if element != _STRING:
            raise TsugikiError(f"{self.path} is damaged: its header has a list of the unknown type {element}")
        return [self.text() for _ in range(count)]


def _parse(path: Path, data: mmap.mmap) -> GgufHeader:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    cursor = _Cursor(path, data)
    version = cursor.number("I")
    if version not in _VERSIONS:
        raise TsugikiError(
            f"{path} is of version {version} of the format; {' and '.join(map(str, _VERSIONS))} are read, little-endian"
        )
    tensor_count, value_count = cursor.numbers("Q", 2)
    metadata = {cursor.text(): cursor.value(cursor.number("I")) for _ in range(value_count)}
    entries = [_entry(cursor) for _ in range(tensor_count)]
    alignment = metadata.get("general.alignment", _ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1:
        raise TsugikiError(f"{path} is damaged: its alignment is {alignment!r}")
    start = -(-cursor.at // alignment) * alignment
    tensors = []
    for name, shape, number, offset in entries:
        try:
            type = GGMLQuantizationType(number)
        except ValueError as error:
            raise TsugikiError(
                f"{path}: {name} is packed in a way (type {number}) that the installed gguf package does not know"
            ) from error
        block, size = GGML_QUANT_SIZES[type]
        begin = start + offset
        tensors.append(GgufTensor(name, type, shape, begin, begin + prod(shape) // block * size))
    expected = max((tensor.end for tensor in tensors), default=0)
    if expected > len(data):
        raise TsugikiError(f"{path} is cut short: it has {len(data):,} of {expected:,} bytes; fetch it again")
    return GgufHeader(metadata, tuple(tensors), start)


def _entry(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    """Name, shape, type and offset of a tensor."""
    name = cursor.text()
    shape = cursor.numbers("Q", cursor.number("I"))[::-1]
    return name, shape, cursor.number("I"), cursor.number("Q")
