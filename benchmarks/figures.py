"""A table of figures for the guides: headers, cells, and how the figures were measured, as a JSON file."""

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
        """Return the headers in this language, and the cells."""
        return Table(list(self.headers[language]), [list(row) for row in self.rows])

    def write(self, file: Path) -> None:
        """Write the file atomically."""
        write_json(file, asdict(self))
