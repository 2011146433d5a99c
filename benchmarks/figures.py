"""A table of figures for the guides: headers, cells, and how the figures were measured, as a JSON file."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tsugiki.base.loading import default_device
from tsugiki.bench.results import installed_versions
from tsugiki.io.json import write_json
from tsugiki.report.table import Table
from tsugiki.training.record import describe_machine

KIND = "figures"
"""The value of `kind` in such a file; the results of `tsugiki bench` have another one."""

_JAPANESE_CELLS = {
    r"([\d,]+) of (\d+) rows": r"\2 行 × \1",
    r" \(rate ([^,)]+), step (\d+)\)": r"（学習率 \1、ステップ \2）",
    r" \(rate ([^,)]+)\)": r"（学習率 \1）",
}
"""Pattern of words in cells -> what a Japanese guide has instead."""


def _cell(text: str, language: str) -> str:
    for pattern, japanese in _JAPANESE_CELLS.items() if language == "ja" else ():
        text = re.sub(pattern, japanese, text)
    return text


@dataclass(frozen=True)
class Figures:
    """A table as a guide shows it."""

    headers: Mapping[str, Sequence[str]]
    """By language: `en`, `ja`."""
    rows: Sequence[Sequence[str]]
    command: str
    machine: Mapping[str, Any] = field(default_factory=lambda: describe_machine(default_device()).model_dump())
    date: str = field(default_factory=lambda: datetime.now(UTC).date().isoformat())
    versions: Mapping[str, str] = field(default_factory=installed_versions)
    kind: str = KIND
    format: int = 1

    def table(self, language: str) -> Table:
        """Return the headers and the cells in this language."""
        return Table(list(self.headers[language]), [[_cell(text, language) for text in row] for row in self.rows])

    def write(self, file: Path) -> None:
        """Write the file atomically."""
        write_json(file, asdict(self))
