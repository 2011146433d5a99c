"""The table of a benchmark's results, for the terminal and for `table.md`."""

from collections.abc import Mapping
from typing import Any

from tsugiki.bench.results import EntryResult, Results
from tsugiki.io.formatting import format_gigabytes
from tsugiki.language import marked
from tsugiki.report.table import Table


def results_table(results: Results) -> Table:
    """Return headers and cells: a row for each entry, then a row for each limit of the machine."""
    headers = ["", "tokens/s", marked("slowest to fastest"), marked("ratio")]
    headers += [marked("share of limit")] if results.limits else []
    headers += [marked("peak memory"), marked("above the model")] if any(row.peak for row in results.rows) else []
    headers += [marked("settings")]
    rows = [_cells(row) for row in results.rows]
    for dtype, limit in results.limits.items():
        causal = f"with causal attention: {_format_speed(limit['causal_tokens_per_second'])}"
        rows.append({"": f"limit, {dtype}", "tokens/s": _format_speed(limit["tokens_per_second"]), "settings": causal})
    return Table(headers, [[row.get(header, "–") for header in headers] for row in rows])


def results_lines(results: Results) -> list[str]:
    """Return two lines: the workload, the machine, the date and the versions; and the command."""
    work, machine = results.work, results.machine
    what = f"{work['model']}, {work['batch']} x {work['length']} tokens per step"
    versions = ", ".join(f"{name} {number}" for name, number in results.versions.items())
    return [
        f"{what}; {computer(machine)}; {results.date}; {versions}",
        results.command,
    ]


def computer(machine: Mapping[str, Any]) -> str:
    """Return the name of the accelerator, or else of the processor, from the fields of a `Machine`."""
    without = ", without C functions" if machine.get("c_functions") is False else ""
    return machine.get("accelerator") or f"{machine['processor']}, {machine['threads']} threads{without}"


def results_page(results: Results) -> str:
    """Return the text of `table.md`."""
    return "\n".join([f"{line}\n" for line in results_lines(results)] + [results_table(results).to_markdown()])


def _cells(row: EntryResult) -> dict[str, str]:
    """Return the cells of an entry by header, without figures that were not measured."""
    if row.problem:
        return {"": row.name, "settings": row.problem}
    cells = {"": row.name, "settings": ", ".join(f"{name} {value}" for name, value in row.notes.items()) or "–"}
    if row.tokens_per_second is not None and row.slowest is not None and row.fastest is not None:
        cells["tokens/s"] = _format_speed(row.tokens_per_second)
        cells["slowest to fastest"] = f"{_format_speed(row.slowest)} – {_format_speed(row.fastest)}"
    if row.ratio is not None:
        interval = "" if row.ratio_range is None else " [{:.2f}, {:.2f}]".format(*row.ratio_range)
        cells["ratio"] = f"{row.ratio:.2f}{interval}"
    if row.share is not None:
        cells["share of limit"] = f"{row.share:.0%}"
    if row.peak is not None:
        cells["peak memory"] = format_gigabytes(row.peak)
    if row.above_loaded is not None:
        cells["above the model"] = format_gigabytes(row.above_loaded)
    return cells


def _format_speed(speed: float) -> str:
    return f"{speed:,.0f}" if speed >= 100 else f"{speed:.3g}"
