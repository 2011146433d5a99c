"""`report.html` of several runs: their table, held-out curves and samples."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from markupsafe import Markup

from tsugiki.io.atomic import write_text
from tsugiki.report.page import Section, page, render_macro, table
from tsugiki.report.plots import curves
from tsugiki.report.run import REPORT_FILE, held_out_series
from tsugiki.report.samples import sample_columns
from tsugiki.train.record import RunRecord

_MAX_BANDS = 3  # with more runs, their intervals would hide each other


def write_comparison(
    folder: Path,
    title: str,
    lead: str,
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    runs: Sequence[tuple[str, RunRecord]],
    figures: Sequence[Markup] = (),
    notes: Sequence[str] = (),
) -> Path:
    """Write the page of a comparison.

    Args:
        folder: the folder for `report.html`; it must exist.
        title: the title of the page.
        lead: a sentence with the main result.
        headers: the headers of the table.
        rows: the cells of the table; line breaks in a cell are kept.
        runs: unique names of the runs, with their records.
        figures: additional plots, such as `plots.over_ranks`, which come first.
        notes: warnings, which come before the table.

    Returns:
        The path of the page.

    Raises:
        TsugikiError: the page cannot be written; an existing page is unchanged.
    """
    held_out = [held_out_series(record, name, colour) for colour, (name, record) in enumerate(runs)]
    if len(runs) > _MAX_BANDS:
        held_out = [replace(line, band=()) for line in held_out]
    plots = [*figures, curves(held_out, "Held-out text by step, bits per character")]
    sections = [
        ("Runs", table(headers, rows) if rows else Markup()),
        ("Figures", render_macro("figures", [plot for plot in plots if plot]) if any(plots) else Markup()),
        ("Samples", sample_columns(runs)),
    ]
    path = folder / REPORT_FILE
    write_text(path, page(title, lead, [Section(heading, body) for heading, body in sections if body], notes))
    return path
