"""List the adapters of the library, for `tsugiki adapters list`."""

import json
import math
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from tsugiki.adapters.library import LibraryEntry
from tsugiki.errors import TsugikiError
from tsugiki.io.file_names import RECORD_FILE
from tsugiki.io.formatting import format_size
from tsugiki.language import _
from tsugiki.report.formatting import format_number
from tsugiki.report.table import Table
from tsugiki.training.evaluation.result import Evaluation, StepEvaluation
from tsugiki.training.record import RunRecord, read_record


def library_table(entries: Sequence[LibraryEntry]) -> Table:
    """Return a table with a row for each adapter that is not damaged."""
    headers = [_("name"), _("method"), "r", _("targets"), _("base"), _("size"), _("perplexity"), _("changed")]
    rows = []
    for entry in entries:
        if entry.info:
            info = entry.info
            perplexities = [format_number(evaluation.perplexity) for evaluation in _first_and_last(entry.folder)]
            rows.append(
                [
                    entry.name,
                    info.method,
                    ranks_text(info.ranks),
                    ", ".join(info.targets) or "–",
                    info.base.name or "–",
                    format_size(info.size),
                    " → ".join(perplexities) or "–",
                    datetime.fromtimestamp(info.changed).strftime("%Y-%m-%d"),
                ]
            )
    return Table(headers, rows)


def entry_line(entry: LibraryEntry) -> str:
    """Return a JSON object about an adapter in one line; unknown values, and `broken` if it is intact, are null."""
    info = entry.info
    fields: dict[str, Any] = {"name": entry.name, "path": str(entry.folder), "broken": entry.broken or None}
    if info:
        evaluations = _first_and_last(entry.folder)
        fields |= {
            "method": info.method,
            "ranks": info.ranks,
            "targets": info.targets,
            "base": info.base.name,
            "base_fingerprint": info.base.fingerprint,
            "parameters": info.parameters,
            "bytes": info.size,
            "held_out": {when: _finite(result) for when, result in zip(("before", "after"), evaluations, strict=False)}
            or None,
            "changed": datetime.fromtimestamp(info.changed).astimezone().isoformat(timespec="seconds"),
        }
    line = json.dumps(fields, ensure_ascii=False)
    return line.encode(errors="backslashreplace").decode()  # a file name can contain bytes that are not valid text


def ranks_text(ranks: Sequence[int]) -> str:
    """Format the rank, or the lowest and the highest one; a dash if there is none."""
    if not ranks:
        return "–"
    return str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]}–{ranks[-1]}"


def record_of(folder: Path) -> RunRecord | None:
    """Return the training record in an adapter's folder; None if there is none or it cannot be read."""
    try:
        return read_record(folder) if (folder / RECORD_FILE).is_file() else None
    except TsugikiError:
        return None


def _first_and_last(folder: Path) -> list[StepEvaluation]:
    """Return the first and the last evaluation of the training run, if there are any."""
    record = record_of(folder)
    evaluations = record.evaluations if record else []
    return evaluations if len(evaluations) < 2 else [evaluations[0], evaluations[-1]]


def _finite(result: Evaluation) -> dict[str, float | None]:
    """Return the figures of an evaluation; None for those that JSON cannot express."""
    figures = {"loss": result.loss, "perplexity": result.perplexity, "bits_per_char": result.bits_per_char}
    return {name: value if math.isfinite(value) else None for name, value in figures.items()}
