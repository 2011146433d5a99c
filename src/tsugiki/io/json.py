"""Read JSON with limits and errors of one line, and write it atomically; also JSON lines, an object in each.

A line ends at a line feed alone: texts can have U+2028 and other characters at which `str.splitlines` splits as well.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from tsugiki.errors import TsugikiError, error_text, unreadable
from tsugiki.io.atomic import write_bytes, write_text
from tsugiki.io.formatting import format_size
from tsugiki.io.validation import describe_problems
from tsugiki.language import _, marked

_MAX_SIZE = 200_000_000  # bytes
_MAX_DEPTH = 100
_MAX_DIGITS = 100
"""The most digits of an integer; one of more than 308 could not be converted to a float."""


def read_json(path: Path, missing: str = "") -> dict[str, Any]:
    """Read a JSON object from a file (see `parse_json` for the limits); lone surrogates become question marks.

    `missing` is the error message if the file does not exist; "PATH is missing" if empty.
    """
    try:
        if path.exists() and not path.is_file():
            raise ValueError(_("it is not a file"))
        with path.open("rb") as file:
            data = file.read(_MAX_SIZE + 1)
        if len(data) > _MAX_SIZE:
            raise ValueError(_("it has more than {size}", size=format_size(_MAX_SIZE)))
        content = _without_surrogates(parse_json(data.decode("utf-8-sig")))
    except FileNotFoundError as error:
        raise TsugikiError(missing or _("{path} is missing", path=path)) from error
    except (OSError, ValueError) as error:
        raise TsugikiError("{path} cannot be read as JSON: {error}", path=path, error=error_text(error)) from error
    if not isinstance(content, dict):
        raise TsugikiError("{path} does not hold a JSON object", path=path)
    return content


def parse_json(text: str) -> Any:
    """Return the value of a JSON text; a ValueError says what is wrong and where."""
    try:
        value = DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise in_words(error) from error
    except RecursionError as error:
        raise ValueError(_("it is nested too deeply")) from error
    check_depth(value)
    return value


def flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values in nested mappings under names with dots, such as lora.r; an empty mapping has none."""
    found: dict[str, Any] = {}
    for name, value in nested.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


_PROBLEMS = (
    marked("Expecting value"),
    marked("Expecting ',' delimiter"),
    marked("Expecting ':' delimiter"),
    marked("Expecting property name enclosed in double quotes"),
    marked("Extra data"),
    marked("Invalid control character"),
    marked("Unterminated string"),
)
"""The messages of Python's JSON that are translated."""


def in_words(error: json.JSONDecodeError) -> ValueError:
    """Return an error of Python's JSON in the language of the user."""
    problem = _(error.msg.removesuffix(" at").removesuffix(" starting"))
    if error.lineno == 1:
        return ValueError(_("{error} at character {position}", error=problem, position=error.colno))
    return ValueError(
        _("{error} at character {position} of line {line}", error=problem, position=error.colno, line=error.lineno)
    )


def check_depth(value: Any) -> None:
    """Raise a ValueError if a value is nested in more than 100 levels."""
    level = [value]
    for _turn in range(_MAX_DEPTH):
        level = [
            item
            for outer in level
            if isinstance(outer, dict | list)
            for item in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return
    raise ValueError(_("it is nested too deeply"))


def _without_surrogates(value: Any) -> Any:
    """Return the value with question marks for lone surrogates, which cannot be printed or written."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.loads(text.encode("utf-8", "replace"))
    return value


def integer(digits: str) -> int:
    """Return the value of an integer of at most 100 digits."""
    if len(digits) > _MAX_DIGITS:
        raise ValueError(_("an integer has more than {most} digits", most=_MAX_DIGITS))
    return int(digits)


def _object(members: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object with these members. Of two with the same name, Python would keep the last without a word."""
    found = dict(members)
    if len(found) < len(members):
        name, _count = Counter(name for name, _value in members).most_common(1)[0]
        raise ValueError(_("an object has {name} twice", name=error_text(name, 40)))
    return found


DECODER = json.JSONDecoder(parse_int=integer, object_pairs_hook=_object)
"""Decodes JSON that others wrote; a ValueError of its own says which integer or object is wrong."""


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object to a file atomically, replacing an existing file."""
    write_text(path, to_json_text(content))


def to_json_text(content: Mapping[str, Any]) -> str:
    """Format a JSON object as the text of a file: indented, non-ASCII characters unescaped, with a final line break."""
    return json.dumps(content, ensure_ascii=False, indent=2) + "\n"


def value_text(value: object) -> str:
    """Format a value in one line for display: a string without quotes, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


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
                message = _(
                    "{path}:{number} is damaged: {problems}; correct or remove the line",
                    path=path,
                    number=number,
                    problems=describe_problems(error, ()),
                )
                damaged.append(message)
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
