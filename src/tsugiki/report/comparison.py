"""`report.html` of several runs side by side."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from markupsafe import Markup

from tsugiki.io.atomic import write_text
from tsugiki.report.page import Section, page, part, table
from tsugiki.report.plots import curves
from tsugiki.report.run import REPORT_FILE, held_out_series
from tsugiki.report.samples import sample_columns
from tsugiki.train.record import RunRecord

_BANDS = 3  # intervals that can be told apart in one plot


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
    """Write the page of a comparison: the table, the held-out curves, and what each run wrote.

    Args:
        folder: where to write `report.html`; it must exist.
        title: of the page.
        lead: the sentence that says what came out.
        headers: of the table.
        rows: of the table, as text; a line break in a cell is kept.
        runs: their names, which tell them apart, and their records.
        figures: more plots, such as `plots.over_ranks` makes of a sweep; they stand first.
        notes: what one should know before reading on.

    Returns:
        Where the page is.

    Raises:
        TsugikiError: the page cannot be written; one that was there is still there.
    """
    held_out = [held_out_series(record, name, place) for place, (name, record) in enumerate(runs)]
    if len(runs) > _BANDS:
        held_out = [replace(line, band=()) for line in held_out]
    drawn = [*figures, curves(held_out, "Held-out text by step, bits a character")]
    sections = [
        ("Runs", table(headers, rows) if rows else Markup()),
        ("Figures", part("figures", [one for one in drawn if one]) if any(drawn) else Markup()),
        ("Samples", sample_columns(runs)),
    ]
    path = folder / REPORT_FILE
    write_text(path, page(title, lead, [Section(heading, body) for heading, body in sections if body], notes))
    return path
