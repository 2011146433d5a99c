"""Show a preview of the training data in the terminal or as a self-contained HTML page."""

from collections.abc import Sequence
from itertools import groupby

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.rule import Rule
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from tsugiki.io.formatting import format_duration
from tsugiki.language import _, counts, listed
from tsugiki.report.html import in_frame, render
from tsugiki.report.record_text import data_lines, near_duplicate_lines
from tsugiki.report.table import wrap
from tsugiki.training.run.preview import Preview, RowView, SegmentView

STYLES = {
    "target": "green",
    "context": "bright_black",
    "target special": "black on green",
    "context special": "bright_black reverse",
}
_LINES, _GROUPS, _NAMES = 12, 3, 5
"""Unless everything is shown: lines of a row, groups of near-duplicates, and names of each."""


def to_terminal(preview: Preview, colours: bool, verbose: bool = True) -> RenderableType:
    """Render the rows, the counts and the notes; without colours, tokens in the loss are enclosed in ⟦ and ⟧.

    Unless `verbose` is set, only so much of rows and near-duplicates is shown that everything fits on a screen.
    """
    legend = Text(_("in the loss") if colours else f"⟦{_('in the loss')}⟧", STYLES["target"])
    legend.append("  ")
    legend.append(_("context only"), STYLES["context"])
    legend.append("  ")
    legend.append(_("special token"), STYLES["target special"])
    legend.append("  " + _("✂ continues in another row, or is cut off"), "yellow")
    parts: list[RenderableType] = [legend]
    for row in preview.rows:
        segments = Group(*(_segment(segment, colours) for segment in row.segments))
        parts.append(Rule(_row_title(row, preview), align="left", style="bright_black"))
        parts.append(segments if verbose else _FirstLines(segments))
        if row.padding:
            parts.append(Text("+ " + padding(row), "bright_black italic"))
    table = Table(show_header=False)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    for label, value in count_lines(preview, verbose):
        table.add_row(label, value)
    return Group(*parts, table, *(_Note(_("note: {note}", note=note)) for note in preview.notes))


class _Note:
    """Shows a note, whose lines end between any two Japanese characters; rich would end them at spaces alone."""

    def __init__(self, note: str) -> None:
        self.note = note

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text("\n".join(wrap(self.note, options.max_width)))


class _FirstLines:
    """Shows the first lines of a row, and how many more there are."""

    def __init__(self, row: RenderableType) -> None:
        self.row = row

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(self.row, options, pad=False)
        for line in lines[:_LINES]:
            yield from line
            yield Segment.line()
        if len(lines) > _LINES:
            yield Text(_("… and {count:,} more lines of this row", count=len(lines) - _LINES), "cyan")


def to_html(preview: Preview) -> str:
    """Render a self-contained page with a light and a dark theme."""
    titles = {row.number: _row_title(row, preview) for row in preview.rows}
    return render(
        "preview.html",
        preview=preview,
        counts=count_lines(preview),
        titles=titles,
        before=_before,
        after=_after,
        source=_source,
        padding=padding,
    )


class ShownPreview(Preview):
    """A preview, which a notebook shows as its page."""

    def _repr_html_(self) -> str:
        return in_frame(to_html(self))


def count_lines(preview: Preview, verbose: bool = True) -> list[tuple[str, str]]:
    """Return the labels and texts of the counts; unless `verbose` is set, with few names of near-duplicates."""
    counted = preview.counts
    groups = near_duplicate_lines(counted) if verbose else _short_groups(counted.near_duplicates.first)
    more = [
        (_("characters per token"), f"{counted.characters_per_token:.2f}"),
        (_("longest record"), listed([counts.tokens(counted.longest_tokens), counted.longest_record])),
        (_("steps"), f"{counted.steps:,}"),
        (_("training time on this machine"), _("about {duration}", duration=format_duration(counted.seconds))),
    ]
    return [*data_lines(counted), *more, *groups]


def _short_groups(groups: Sequence[Sequence[str]]) -> list[tuple[str, str]]:
    """Return labels and texts for the first groups of near-duplicates: the first names, without folders."""
    lines = []
    for group in groups[:_GROUPS]:
        names = [name.rpartition("/")[2] for name in group[:_NAMES]]
        more = [_("… and {count:,} more", count=len(group) - _NAMES)] if len(group) > _NAMES else []
        lines.append((_("  group"), " · ".join([*names, *more])))
    return lines


def _row_title(row: RowView, preview: Preview) -> str:
    size = preview.counts.block_size
    return _(
        "row {number} of {rows:,}, {filled} of {size} tokens",
        number=row.number,
        rows=preview.counts.blocks,
        filled=size - row.padding,
        size=size,
    )


def padding(row: RowView) -> str:
    """Return the text about the padding of a row."""
    return _("{tokens} of padding", tokens=counts.tokens(row.padding))


def _source(segment: SegmentView) -> str:
    return f"{segment.source} ({counts.tokens(segment.tokens)})"


def _segment(segment: SegmentView, colours: bool) -> Text:
    text = Text(f"┌ {_source(segment)}\n", "cyan")
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
    return "" if segment.last else " … ✂" if segment.continues else " ✂ " + _("cut off")
