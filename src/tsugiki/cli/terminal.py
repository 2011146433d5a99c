"""Print tables and lines on standard output."""

import shlex
from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.table import Column
from rich.table import Table as Grid
from rich.text import Text

from tsugiki.language import _
from tsugiki.report.sections import RIGHT, WRONG, Facts, Folded, Lines, Part, Samples, Section, Sentence
from tsugiki.report.table import Table, printable, wrap

_LABEL = 15  # columns
_WIDTH = 100  # of samples, if the output is not a terminal; at most, if it is one
_NARROW = 72  # columns: below, two samples are one below the other


def print_table(table: Table, *lines: str) -> None:
    """Print a table, and lines below it."""
    table.print()
    print_lines(*lines)


def print_lines(*lines: str) -> None:
    """Print lines of text, which the terminal wraps."""
    console = Console(highlight=False, markup=False)
    for line in lines:
        console.print(printable(line), soft_wrap=True)


def print_sections(sections: Sequence[Section]) -> None:
    """Print sections without their headings, and without plots and programs."""
    for section in sections:
        for part in section.parts:
            _print_part(part)


def _print_part(part: Part) -> None:
    match part:
        case Table():
            part.print()
        case Facts():
            print_lines(" · ".join(f"{label} {text}" for label, text in part.rows))
        case Lines():
            for label, text in part.rows:
                print_line(f"{label}{' ' * max(1, _LABEL - cell_len(label))}{text}")
        case Samples():
            _print_samples(part)
        case Folded():
            for inner in part.parts:
                _print_part(inner)
        case Sentence():
            print_lines(part.text)


def _print_samples(part: Samples) -> None:
    """Print texts, two of them side by side if there is room, with what is new in the second one in bold green."""
    console = Console(highlight=False, markup=False)
    console.width = width = min(console.width, _WIDTH) if console.is_terminal else _WIDTH
    columns = 2 if len(part.texts) == 2 and width >= _NARROW else 1
    room = width // columns - 2
    for label, asked in part.asked:
        console.print("\n".join(wrap(label + printable(asked), width)), style="bold", soft_wrap=True)
    cells = [_cell(label, pieces, room) for (label, _text), pieces in zip(part.texts, part.pieces, strict=True)]
    grid = Grid.grid(*(Column(width=room, overflow="fold") for _column in range(columns)), padding=(0, 2, 0, 0))
    for first in range(0, len(cells), columns):
        grid.add_row(*cells[first : first + columns])
    console.print(grid, "", sep="\n")


def _cell(label: str, pieces: Sequence[tuple[str, bool]], width: int) -> Text:
    """Return a text below its label, in lines; what is new in it has a style."""
    text, at = "".join(printable(piece) for piece, _is_new in pieces), 0
    styles = ["bold green" if is_new else "" for piece, is_new in pieces for _character in printable(piece)]
    lines = [Text(label, {RIGHT: "bold green", WRONG: "bold red"}.get(label[:1], "dim"))]
    for line in wrap(text, width):
        at = text.index(line, at)  # only white space at the ends of lines is left out
        runs = groupby(zip(line, styles[at : at + len(line)], strict=True), itemgetter(1))
        lines.append(Text.assemble(*(("".join(map(itemgetter(0), run)), style) for style, run in runs)))
        at += len(line)
    return Text("\n").join(lines)


def print_next_command(*words: str, err: bool = False) -> None:
    """Print the command that is useful next, quoted for the shell; with `err`, on standard error."""
    command = printable(shlex.join(["tsugiki", *words])).replace("\n", "\\n")
    typer.echo(_("next: {command}", command=command), err=err)


def print_command_after_trying(adapter: str | None, model: str | None) -> None:
    """Print the command that keeps an adapter that was tried, or that serves it, or the model, if nothing is to keep.

    It goes to standard error, because standard output has what a model wrote.
    """
    from tsugiki.adapters.library import adapter_folder, library_folder

    if adapter and adapter_folder(adapter).parent != library_folder():
        print_next_command("adapters", "add", adapter, err=True)
    else:
        named = [*(["--adapter", adapter] if adapter else []), *(["--model", model] if model else [])]
        print_next_command("serve", *named, err=True)


def print_line(line: str) -> None:
    """Print one line of text, in which control characters (from a file, for example) are escaped."""
    typer.echo(printable(line).replace("\n", "\\n"))
