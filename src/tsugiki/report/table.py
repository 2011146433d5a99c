"""Tables for the terminal, pages, Markdown and JSON, and text that is wrapped to the width of a terminal."""

import re
import unicodedata
from typing import Any, NamedTuple

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

_WIDTH = 150  # if the output is not a terminal
_MOST_WRAPPED = 2.2
"""Largest width of a table, relative to the terminal, at which its lines are wrapped; wider tables become blocks."""
WORD = re.compile(r"\s+|[\u2e80-\u9fff\uf900-\ufaff\uff00-\uffef]|[^\s\u2e80-\u9fff\uf900-\ufaff\uff00-\uffef]+")
"""White space, a Japanese character, or a word."""
_NOT_FIRST = frozenset("、。，．：；！？）」』】〉》ーぁぃぅぇぉっゃゅょァィゥェォッャュョ々〜%")
"""Characters that do not begin a line."""
_NOT_LAST = frozenset("（「『【〈《")
"""Characters that do not end a line."""


class Table(NamedTuple):
    """Rows of cells below titles. A cell can contain line breaks."""

    titles: list[str]
    rows: list[list[str]]

    def print(self) -> None:
        """Print the table on standard output, as a list of blocks if the terminal is too narrow for it."""
        console = Console(highlight=False, markup=False)  # cells can contain brackets
        if not console.is_terminal:
            console.width = _WIDTH
        rows = [[*map(printable, row)] for row in self.rows]
        columns = list(zip(self.titles, *rows, strict=True))
        width = sum(max(map(cell_len, column)) + 3 for column in columns) + 1
        if console.is_terminal and width > _MOST_WRAPPED * console.width:
            self._print_blocks(console)
            return
        table, fits = RichTable(), width <= console.width and not any("\n" in cell for row in rows for cell in row)
        for number, (title, *cells) in enumerate(columns):  # a narrow terminal wraps texts, but not names and numbers
            # A line can break at a space, and between characters that are two columns wide.
            is_text = not fits and any(" " in cell or cell_len(cell) > len(cell) for cell in cells)
            table.add_column(title, no_wrap=number == 0 or not is_text, overflow="fold")
        if fits and rows:
            rows = [["\n".join(cells) for cells in zip(*rows, strict=True)]]  # looks the same, in a quarter of the time
        for row in rows:
            table.add_row(*row)
        console.print(table)

    def _print_blocks(self, console: Console) -> None:
        """Print a block for each row, with a line for each column."""
        labels = [title.replace("\n", " ") for title in self.titles[1:]]
        width = max(map(cell_len, labels))
        for row in self.rows:
            console.print(Text(printable(row[0]), style="bold"))
            for title, cell in zip(labels, row[1:], strict=True):
                if cell.strip():
                    label = title + " " * (width - cell_len(title))
                    lines = wrap(printable(cell), max(console.width - width - 4, 20))
                    console.print(Text(f"  {label}  " + f"\n{' ' * (width + 4)}".join(lines)), soft_wrap=True)
        console.print()

    def to_text(self) -> str:
        """Return the table as text of at most 120 columns."""
        table = RichTable(*self.titles)
        for row in self.rows:
            table.add_row(*row)
        console = Console(width=120, color_system=None, markup=False, force_jupyter=False)
        with console.capture() as captured:
            console.print(table)
        return captured.get().rstrip()

    def to_markdown(self) -> str:
        """Return the table in GitHub's Markdown; all columns but the first and the last are aligned to the right."""
        rule = ["---", *["---:"] * (len(self.titles) - 2), "---"]
        lines = [self.titles, rule, *self.rows]
        cells = [[cell.replace("|", r"\|").replace("\n", " ") for cell in line] for line in lines]
        return "".join(f"| {' | '.join(line)} |\n" for line in cells)

    def to_json(self) -> dict[str, Any]:
        """Return the table as a JSON object."""
        return {"headers": self.titles, "rows": self.rows}


def printable(text: str) -> str:
    """Escape control characters and unpaired surrogates, so that a text from any file is safe to print."""
    if text.isprintable():  # nearly all texts
        return text
    escaped = {c: c.encode("unicode_escape").decode() for c in text if unicodedata.category(c) in ("Cc", "Cs")}
    return "".join(escaped.get(c, c) if c != "\n" else c for c in text)


def wrap(text: str, width: int) -> list[str]:
    """Return the lines of a text. `width` is in columns; a Japanese character takes two.

    rich breaks lines only at spaces: it would end a Japanese line long before its edge, or cut it off.
    """
    lines = []
    for paragraph in text.split("\n"):
        line = ""
        for piece in _pieces(paragraph):
            if line and cell_len(line + piece.rstrip()) > width:
                lines.append(line.rstrip())
                line = piece.lstrip()
            else:
                line += piece
        lines.append(line.rstrip())
    return lines


def _pieces(text: str) -> list[str]:
    """Return the parts of a line within which it must not break."""
    pieces: list[str] = []
    for piece in WORD.findall(text):
        if pieces and (piece[0] in _NOT_FIRST or pieces[-1][-1] in _NOT_LAST):
            pieces[-1] += piece
        else:
            pieces.append(piece)
    return pieces
