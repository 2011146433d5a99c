"""Show a preview of the training data in the terminal or as a self-contained HTML page."""

from itertools import groupby

from rich.console import Group, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from tsugiki.io.formatting import format_duration
from tsugiki.report.page import render
from tsugiki.report.run import data_lines, near_duplicate_lines
from tsugiki.train.workflows.preview import Preview, RowView, SegmentView

STYLES = {
    "target": "green",
    "context": "bright_black",
    "target special": "black on green",
    "context special": "bright_black reverse",
}


def to_terminal(preview: Preview, colours: bool) -> RenderableType:
    """Render the rows and the counts; without colours, tokens that count in the loss are enclosed in ⟦ and ⟧."""
    legend = Text("in the loss" if colours else "⟦in the loss⟧", STYLES["target"])
    legend.append("  ")
    legend.append("context only", STYLES["context"])
    legend.append("  ")
    legend.append("special token", STYLES["target special"])
    legend.append("  ✂ continues in another row, or is cut off", "yellow")
    parts: list[RenderableType] = [legend]
    for row in preview.rows:
        parts += [
            Rule(_row_title(row, preview), align="left", style="bright_black"),
            *(_segment(segment, colours) for segment in row.segments),
        ]
        if row.padding:
            parts.append(Text(f"+ {row.padding} tokens of padding", "bright_black italic"))
    table = Table(show_header=False)
    for label, value in count_lines(preview):
        table.add_row(label, value)
    return Group(*parts, table, *(Text(f"note: {note}", "yellow") for note in preview.notes))


def to_html(preview: Preview) -> str:
    """Render a self-contained page with a light and a dark theme."""
    titles = {row.number: _row_title(row, preview) for row in preview.rows}
    return render(
        "preview.html", preview=preview, counts=count_lines(preview), titles=titles, before=_before, after=_after
    )


def count_lines(preview: Preview) -> list[tuple[str, str]]:
    """Return the labels and texts of the counts."""
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


def _segment(segment: SegmentView, colours: bool) -> Text:
    text = Text(f"┌ {segment.source} ({segment.tokens} tokens)\n", "cyan")
    text.append(_before(segment), "yellow")
    for in_loss, spans in groupby(segment.spans, key=lambda span: span.kind.startswith("target")):
        marks = ("⟦", "⟧") if in_loss and not colours else ("", "")
        text.append(marks[0])
        for span in spans:
            text.append(span.text, STYLES[span.kind])
        text.append(marks[1])
    text.append(_after(segment), "yellow")
    return text


def _before(segment: SegmentView) -> str:
    return "" if segment.first else "✂ … "


def _after(segment: SegmentView) -> str:
    return "" if segment.last else " … ✂" if segment.continues else " ✂ cut off"
