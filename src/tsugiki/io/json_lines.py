"""JSON lines that Tsugiki writes and reads again: a JSON object in each line, and a line feed after each.

A line ends at a line feed alone: texts can have U+2028 and other characters at which `str.splitlines` splits as well.
"""

import json
from collections.abc import Iterable, Mapping
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


def parse_rows(path: Path, content: bytes, kind: type[T]) -> tuple[list[T], list[str]]:
    """Return the rows of a file's content as a class that pydantic can validate, and what is wrong with other lines."""
    adapter, rows, damaged = TypeAdapter(kind), list[T](), list[str]()
    for number, line in enumerate(content.split(b"\n"), 1):
        if line.strip():
            try:
                rows.append(adapter.validate_json(line))
            except ValidationError as error:
                message = _("{path}:{number} is damaged: {problems}; correct or remove the line")
                damaged.append(message.format(path=path, number=number, problems=describe_problems(error, ())))
    return rows, damaged


def read_rows(path: Path, kind: type[T]) -> list[T]:
    """Return the rows of a file as a class that pydantic can validate; a TsugikiError names the first other line."""
    try:
        rows, damaged = parse_rows(path, path.read_bytes(), kind)
    except OSError as error:
        raise unreadable(path, error) from error
    if damaged:
        raise TsugikiError(damaged[0])
    return rows
