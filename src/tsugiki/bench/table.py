"""The table of a benchmark's results, for the terminal and for `table.md`."""

from collections.abc import Mapping
from dataclasses import dataclass

from tsugiki.bench.results import EntryResult, Results
from tsugiki.io.formatting import format_gigabytes
from tsugiki.report.formatting import Table

_EMPTY = "–"


@dataclass(frozen=True)
class Labels:
    """The texts of a results table in one language."""

    headers: Mapping[str, str]
    """By column."""
    limit: str
    """Name of a row with the machine's limit; filled with `dtype`."""
    causal: str
    """Note of such a row; filled with `speed`."""


ENGLISH = Labels(
    {
        "name": "",
        "speed": "tokens/s",
        "spread": "slowest to fastest",
        "ratio": "ratio",
        "share": "share of limit",
        "peak": "peak memory",
        "above": "above the model",
        "notes": "settings",
    },
    limit="limit, {dtype}",
    causal="with causal attention: {speed}",
)


def results_table(results: Results, labels: Labels = ENGLISH) -> Table:
    """Return headers and cells: a row for each entry, then a row for each limit."""
    share, memory = bool(results.limits), any(row.peak for row in results.rows)
    columns = ["name", "speed", "spread", "ratio", *(["share"] if share else [])]
    columns += [*(["peak", "above"] if memory else []), "notes"]
    rows = [_cells(row) for row in results.rows]
    for dtype, limit in results.limits.items():
        causal = labels.causal.format(speed=_format_speed(limit["causal_tokens_per_second"]))
        speed = _format_speed(limit["tokens_per_second"])
        rows.append({"name": labels.limit.format(dtype=dtype), "speed": speed, "notes": causal})
    headers = [labels.headers[column] for column in columns]
    return headers, [[row.get(column, _EMPTY) for column in columns] for row in rows]


def results_lines(results: Results) -> list[str]:
    """Return two lines: what was measured on which machine with which versions, and the command."""
    work, machine = results.work, results.machine
    what = f"{work['model']}, {work['batch']} x {work['length']} tokens per step"
    if results.kind == "generate":
        what = f"{work['model']}, prompt of {work['length']} tokens, greedy decoding with a cache"
    versions = ", ".join(f"{name} {number}" for name, number in results.versions.items())
    return [
        f"{what}; {machine['processor']}, {machine['threads']} threads; {results.date}; {versions}",
        f"{results.command}",
    ]


def markdown_table(table: Table) -> str:
    """Return a table in GitHub's Markdown; all columns but the first and the last are aligned to the right."""
    headers, rows = table
    rule = ["---", *["---:"] * (len(headers) - 2), "---"]
    return "".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in [headers, rule, *rows]
    )


def results_page(results: Results) -> str:
    """Return the text of `table.md`."""
    return "\n".join([f"{line}\n" for line in results_lines(results)] + [markdown_table(results_table(results))])


def _cells(row: EntryResult) -> dict[str, str]:
    cells = {"name": row.name, "notes": row.problem or _format_notes(row)}
    if row.tokens_per_second is not None and row.slowest is not None and row.fastest is not None:
        cells["speed"] = _format_speed(row.tokens_per_second)
        cells["spread"] = f"{_format_speed(row.slowest)} – {_format_speed(row.fastest)}"
    if row.ratio is not None:
        cells["ratio"] = f"{row.ratio:.2f}"
    if row.share is not None:
        cells["share"] = f"{row.share:.0%}"
    if row.peak is not None and not row.problem:
        cells["peak"] = format_gigabytes(row.peak)
    if row.above_loaded is not None and not row.problem:
        cells["above"] = format_gigabytes(row.above_loaded)
    return cells


def _format_notes(row: EntryResult) -> str:
    return ", ".join(f"{name} {value}" for name, value in row.notes.items()) or _EMPTY


def _format_speed(speed: float) -> str:
    return f"{speed:,.0f}" if speed >= 100 else f"{speed:.3g}"
