"""Any other table that a guide shows: its cells, and where they come from, as JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tsugiki.adapters.format import write_json
from tsugiki.bench.results import installed
from tsugiki.report.formatting import Table
from tsugiki.train.record import describe_machine

KIND = "figures"


@dataclass(frozen=True)
class Figures:
    """A table as it is to be shown."""

    headers: Mapping[str, Sequence[str]]
    """By language: `en`, `ja`."""
    rows: Sequence[Sequence[str]]
    command: str
    machine: Mapping[str, Any] = field(default_factory=describe_machine)
    date: str = field(default_factory=lambda: datetime.now(UTC).date().isoformat())
    versions: Mapping[str, str] = field(default_factory=installed)
    kind: str = KIND
    format: int = 1

    def table(self, language: str) -> Table:
        """Headers in this language, and the cells."""
        return list(self.headers[language]), [list(row) for row in self.rows]

    def write(self, file: Path) -> None:
        """Write the file, whole or not at all."""
        write_json(file, asdict(self))
