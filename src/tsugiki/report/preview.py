"""A preview of what will be learned, for the terminal and as one self-contained HTML page."""

from importlib.resources import files
from itertools import groupby

from jinja2 import Environment
from rich.console import Group, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from tsugiki.train.preview import PieceView, Preview, RowView

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
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((files("tsugiki") / "report" / "preview.html").read_text(encoding="utf-8"))
    titles = {row.number: _row_title(row, preview) for row in preview.rows}
    return template.render(preview=preview, counts=count_lines(preview), titles=titles, before=_before, after=_after)


def count_lines(preview: Preview) -> list[tuple[str, str]]:
    """The counts, labelled, as both displays show them."""
    counts = preview.counts
    train, held_out, near = counts["train"], counts["held_out"], counts["near_duplicates"]
    size, blocks = counts["block_size"], counts["blocks"]
    isolation = {
        "positions": "do not see each other (positions begin anew)",
        "mask": "do not see each other (a mask)",
        "rows": "each in rows of its own",
    }[counts["isolation"]]
    lines = [
        ("to learn", f"{train['documents']:,} records, {train['characters']:,} characters"),
        ("held out", f"{held_out['documents']:,} records, {held_out['characters']:,} characters"),
        ("tokens", f"{counts['tokens_per_epoch']:,}, {counts['characters_per_token']:.2f} characters a token"),
        ("learned", f"{counts['learned_tokens_per_epoch']:,} tokens, {counts['learned_share']:.1%}"),
        ("rows", f"{blocks:,} of {size} tokens, {counts['padding'] / (blocks * size):.1%} padding"),
        ("records in a row", isolation),
        ("longest record", f"{counts['longest']['tokens']:,} tokens, {counts['longest']['source']}"),
        ("go on in other rows", f"{counts['split_records']:,} documents"),
        ("cut off", f"{counts['cut_records']:,} examples, {counts['cut_tokens']:,} tokens"),
        ("near-duplicates", f"{near['records']:,} records in {near['groups']:,} groups"),
        ("steps", f"{counts['steps']:,}"),
        ("time of training, here", _duration(counts["seconds"])),
    ]
    lines += [("  alike", " · ".join(group)) for group in near["first"]]
    return lines


def _row_title(row: RowView, preview: Preview) -> str:
    size = preview.counts["block_size"]
    return f"row {row.number} of {preview.counts['blocks']:,}, {size - row.padding} of {size} tokens"


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


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"about {seconds:.0f} s"
    if seconds < 5400:
        return f"about {seconds / 60:.0f} min"
    return f"about {seconds / 3600:.1f} h"
