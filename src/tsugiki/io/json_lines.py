"""JSON lines that Tsugiki writes and reads again: a JSON object in each line, and a line feed after each.

A line ends at a line feed alone: texts can have U+2028 and other characters at which `str.splitlines` splits as well.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from tsugiki.errors import TsugikiError, unreadable
from tsugiki.io.atomic import write_bytes
from tsugiki.io.validation import describe_problems
from tsugiki.language import _

T = TypeVar("T")


def to_lines(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Return rows as the content of a file; lone surrogates become question marks."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode(errors="replace")


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows to a file atomically, replacing an existing one."""
    write_bytes(path, to_lines(rows))


def parse_rows(path: Path, content: bytes, kind: type[T]) -> Iterator[T | TsugikiError]:
    """Yield each row of the content of a file as a class that pydantic can validate, or what is wrong with its line."""
    adapter = TypeAdapter(kind)
    for number, line in enumerate(content.split(b"\n"), 1):
        if line.strip():
            try:
                yield adapter.validate_json(line)
            except ValidationError as error:
                message = _("{path}:{number} is damaged: {problems}; correct or remove the line")
                problems = describe_problems(error, ())
                yield TsugikiError(message.format(path=path, number=number, problems=problems))


def read_rows(path: Path, kind: type[T]) -> list[T]:
    """Return the rows of a file as a class that pydantic can validate; a TsugikiError names the first other line."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error
    rows = []
    for row in parse_rows(path, content, kind):
        if isinstance(row, TsugikiError):
            raise row
        rows.append(row)
    return rows
