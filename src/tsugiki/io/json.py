"""Read JSON files, with errors of one line, and write them atomically."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tsugiki.errors import TsugikiError
from tsugiki.io.atomic import write_text


def read_json(path: Path, missing: str = "") -> dict[str, Any]:
    """Read a JSON object from a file.

    Args:
        path: the file.
        missing: the error message if the file does not exist; "PATH is missing" if empty.

    Raises:
        TsugikiError: the file does not exist, cannot be read, or does not hold a JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise TsugikiError(missing or f"{path} is missing") from error
    except (OSError, ValueError, RecursionError) as error:
        raise TsugikiError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise TsugikiError(f"{path} does not hold a JSON object")
    return content


def write_json(path: Path, content: Mapping[str, Any], *, durable: bool = True) -> None:
    """Write a JSON object to a file atomically, replacing an existing one (`durable`: see `io.atomic.new_file`).

    Raises:
        TsugikiError: the file cannot be written.
    """
    write_text(path, to_json_text(content), durable=durable)


def to_json_text(content: Mapping[str, Any]) -> str:
    """Format a JSON object as the text of a file: indented, non-ASCII characters unescaped, with a final line break."""
    return json.dumps(content, ensure_ascii=False, indent=2) + "\n"


def value_text(value: object) -> str:
    """Format a value in one line for display: a string without quotes, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
