"""A preview of what will be learned, for the terminal and as one self-contained HTML page."""

from itertools import groupby

from rich.console import Group, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from tsugiki.io.formatting import format_duration
from tsugiki.report.counts import data_lines, near_duplicate_lines
from tsugiki.report.page import render
from tsugiki.train.workflows.preview import PieceView, Preview, RowView

STYLES = {
    "learned": "green",
    "masked": "bright_black",
    "learned special": "black on green",
    "masked special": "bright_black reverse",
}


def to_terminal(preview: Preview, colours: bool) -> RenderableType:
    """Rows, then the counts; what is learned is in colour, or, where there are none, between ⟦ and ⟧."""
    legend = Text("learned" if colours else "⟦learned⟧", STYLES["learned"])
    legend.append("  ")
    legend.append("read, not learned", STYLES["masked"])
    legend.append("  ")
    legend.append("special token", STYLES["learned special"])
    legend.append("  ✂ goes on elsewhere or is cut off", "yellow")
    parts: list[RenderableType] = [legend]
    for row in preview.rows:
        parts += [
            Rule(_row_title(row, preview), align="left", style="bright_black"),
            *(_piece(piece, colours) for piece in row.pieces),
        ]
        if row.padding:
            parts.append(Text(f"+ {row.padding} tokens of padding", "bright_black italic"))
    table = Table(show_header=False)
    for label, value in count_lines(preview):
        table.add_row(label, value)
    return Group(*parts, table, *(Text(f"note: {note}", "yellow") for note in preview.notes))


def to_html(preview: Preview) -> str:
    """One page that needs nothing else, in light and dark."""
    titles = {row.number: _row_title(row, preview) for row in preview.rows}
    return render(
        "preview.html", preview=preview, counts=count_lines(preview), titles=titles, before=_before, after=_after
    )


def count_lines(preview: Preview) -> list[tuple[str, str]]:
    """The counts, labelled, as both displays show them."""
    counts = preview.counts
    more = [
        ("characters per token", f"{counts.characters_per_token:.2f}"),
        ("longest record", f"{counts.longest_tokens:,} tokens, {counts.longest_record}"),
        ("steps", f"{counts.steps:,}"),
        ("training time on this machine", f"about {format_duration(counts.seconds)}"),
    ]
    return [*data_lines(counts), *more, *near_duplicate_lines(counts)]


def _row_title(row: RowView, preview: Preview) -> str:
    size = preview.counts.block_size
    return f"row {row.number} of {preview.counts.blocks:,}, {size - row.padding} of {size} tokens"


def _piece(piece: PieceView, colours: bool) -> Text:
    text = Text(f"┌ {piece.source} ({piece.tokens} tokens)\n", "cyan")
    text.append(_before(piece), "yellow")
    for learned, spans in groupby(piece.spans, key=lambda span: span.kind.startswith("learned")):
        marks = ("⟦", "⟧") if learned and not colours else ("", "")
        text.append(marks[0])
        for span in spans:
            text.append(span.text, STYLES[span.kind])
        text.append(marks[1])
    text.append(_after(piece), "yellow")
    return text


def _before(piece: PieceView) -> str:
    return "" if piece.first else "✂ … "


def _after(piece: PieceView) -> str:
    return "" if piece.last else " … ✂" if piece.goes_on else " ✂ cut off"
