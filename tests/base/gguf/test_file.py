"""The header of a GGUF file compared with gguf's own reader, and files that are truncated or damaged."""

import struct
from pathlib import Path

import gguf
import pytest

from tests.base.gguf.files import Kind, tiny_base, write_gguf
from tests.errors import assert_refused
from tsugiki.base import is_gguf, read_header


@pytest.fixture
def path(tmp_path: Path) -> Path:
    settings = {"a.list": [1, 2, 3], "a.number": 1.5, "a.text": "猫", "a.truth": True}
    return write_gguf(tmp_path / "tiny.gguf", tiny_base("llama", intermediate_size=64), Kind.Q8_0, settings)


def test_the_header_is_the_one_that_gguf_reads(path: Path):
    header, reader = read_header(path), gguf.GGUFReader(path)
    theirs = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert dict(header.metadata) == theirs
    assert header.architecture == "llama"
    assert header.setting("block_count") == 2
    assert header.setting("nothing", 7) == 7
    assert header.size == reader.data_offset
    for ours, other in zip(header.tensors, reader.tensors, strict=True):
        assert (ours.name, ours.type, ours.begin) == (other.name, other.tensor_type, other.data_offset)
        assert ours.shape == tuple(other.shape.tolist()[::-1])
        assert ours.end - ours.begin == other.n_bytes


def test_a_truncated_file_is_noticed_at_every_length(path: Path, tmp_path: Path):
    content = path.read_bytes()
    last = max(tensor.end for tensor in read_header(path).tensors)
    cut = tmp_path / "cut.gguf"
    for length in (*range(4, 200, 7), *range(200, last, last // 60), last - 1):
        cut.write_bytes(content[:length])
        assert is_gguf(cut)
        assert_refused("truncated", read_header, cut)
    cut.write_bytes(content[:last])
    read_header(cut)


@pytest.mark.parametrize(
    ("at", "bytes_", "message"),
    [
        (0, b"hello", "GGUF"),
        (4, struct.pack("<I", 1), "version 1 .* 2 and 3"),
        (8, struct.pack("<Q", 1 << 60), "truncated or damaged"),
        (24, struct.pack("<Q", 1 << 63), "truncated or damaged"),
    ],
)
def test_damaged_headers(at: int, bytes_: bytes, message: str, path: Path):
    content = bytearray(path.read_bytes())
    content[at : at + len(bytes_)] = bytes_
    path.write_bytes(content)
    assert_refused(message, read_header, path)


def test_a_tensor_of_many_dimensions_is_refused_at_once(tmp_path: Path):
    """Multiplying them took 9 s for a file of 0.5 MB."""
    shape = struct.pack("<I", 60_000) + struct.pack("<Q", 2**62) * 60_000
    path = tmp_path / "a.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + struct.pack("<Q", 1) + b"a" + shape + bytes(12))
    assert_refused("a has 60,000 dimensions", read_header, path)


def test_tensors_that_overlap_are_refused(tmp_path: Path):
    """The digest of a base would read the same bytes once for each of them."""
    path = tmp_path / "a.gguf"
    tensors = b"".join(struct.pack("<Q", 1) + name + struct.pack("<IQIQ", 1, 16, 0, 32) for name in (b"a", b"b"))
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 2, 0) + tensors + bytes(256))
    assert_refused("the values of a, b overlap", read_header, path)


def test_quantisation_types_that_the_gguf_package_does_not_know(path: Path):
    content, name = path.read_bytes(), b"output_norm.weight"
    at = content.index(name) + len(name) + 4 + 8
    path.write_bytes(content[:at] + struct.pack("<I", 999) + content[at + 4 :])
    assert_refused(r"output_norm.weight .*type 999", read_header, path)
