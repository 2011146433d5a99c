"""What folders and files hold."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of every file in a folder, by its path in the folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def jsonl(rows: Iterable[Any]) -> str:
    """JSON Lines, a row each."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_rows(path: Path | str, rows: Iterable[Any]) -> str:
    """Write JSON Lines, a row each; returns the path."""
    Path(path).write_text(jsonl(rows), encoding="utf-8")
    return str(path)


def rows_of(text: Path | str) -> list[Any]:
    """The rows of a file of JSON Lines, or of what a command has printed."""
    content = text if isinstance(text, str) else text.read_text(encoding="utf-8")
    return [json.loads(line) for line in content.split("\n") if line]


def json_of(path: Path | str) -> Any:
    """What a JSON file holds."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def edit_json(path: Path | str, **fields: Any) -> None:
    """Change fields of a JSON file, or write it if it is missing."""
    file = Path(path)
    file.write_text(json.dumps((json_of(file) if file.exists() else {}) | fields), encoding="utf-8")
