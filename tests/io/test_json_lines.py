"""Rows are read as they were written, whatever characters they have, and a damaged line is named."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.errors import refused
from tsugiki.io.json import read_rows, to_lines, write_rows


@dataclass
class Row:
    text: str
    number: float | None = None


def test_every_character_stays_in_its_row(tmp_path: Path):
    texts = [f"a{chr(code)}b" for code in (*range(0x20), 0x7F, 0x85, 0x2028, 0x2029, 0xFEFF, 0x1F600)]
    write_rows(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    assert [row.text for row in read_rows(tmp_path / "a.jsonl", Row)] == texts
    assert (tmp_path / "a.jsonl").read_bytes().endswith(b"}\n")
    assert to_lines([]) == b""
    assert to_lines([{"text": "\ud800"}]) == b'{"text": "?"}\n'


@pytest.mark.parametrize(
    "line", [b"{", b"[]", b"1", b'{"text": 1}', b"\xff", b"{}", b'{"text": "a"}{"text": "b"}', b"[" * 5000, b"\0"]
)
def test_a_damaged_line_is_named(line: bytes, tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\n\n' + line + b'\n{"text": "c"}')
    with refused(r"a\.jsonl:3 is damaged"):
        read_rows(path, Row)
    path.write_bytes(b'{"text": "a"}\r\n \n{"text": "c", "number": 1}')
    assert read_rows(path, Row) == [Row("a"), Row("c", 1)], "blank lines are none, and the last one needs no line feed"
    with refused(r"no\.jsonl"):
        read_rows(tmp_path / "no.jsonl", Row)
