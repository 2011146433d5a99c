"""Print tables and text on standard output."""

import shlex
from collections.abc import Sequence

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tsugiki.cli.wrapping import has_wide, wrap
from tsugiki.language import _
from tsugiki.report.formatting import Table as Cells
from tsugiki.report.formatting import printable

_WIDTH = 150  # if the output is not a terminal
_MOST_WRAPPED = 2.2
"""Largest width of a table, relative to the terminal, at which its lines are wrapped; wider tables become blocks."""


def print_table(cells: Cells, *lines: str) -> None:
    """Print a table, and lines below it."""
    console = Console(highlight=False, markup=False)  # cells can contain brackets
    if not console.is_terminal:
        console.width = _WIDTH
    headers, rows = cells
    table = Table()
    for column, header in enumerate(headers):  # a narrow terminal wraps texts, but not names and numbers
        is_text = any(" " in row[column] or has_wide(row[column]) for row in rows)
        table.add_column(header, no_wrap=column == 0 or not is_text, overflow="fold")
    for row in rows:
        table.add_row(*map(printable, row))
    natural = sum(max(map(cell_len, column)) + 3 for column in zip(headers, *rows, strict=True)) + 1
    if console.is_terminal and natural > _MOST_WRAPPED * console.width:
        _print_blocks(console, headers, rows)
    else:
        console.print(table)
    for line in lines:
        console.print(printable(line), soft_wrap=True)


def _print_blocks(console: Console, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table that is too wide for the terminal: for each row a block, with a line for each column."""
    width = max(cell_len(header) for header in headers[1:])
    for row in rows:
        console.print(Text(printable(row[0]), style="bold"))
        for header, cell in zip(headers[1:], row[1:], strict=True):
            if cell.strip():
                label = header + " " * (width - cell_len(header))
                lines = wrap(printable(cell), max(console.width - width - 4, 20))
                console.print(Text(f"  {label}  " + f"\n{' ' * (width + 4)}".join(lines)), soft_wrap=True)
    console.print()


def print_next_command(*words: str, err: bool = False) -> None:
    """Print the command that is useful next, quoted for the shell; with `err`, on standard error."""
    command = printable(shlex.join(["tsugiki", *words])).replace("\n", "\\n")
    typer.echo(_("next: {command}").format(command=command), err=err)


def print_line(line: str) -> None:
    """Print one line of text, in which control characters (from a file, for example) are escaped."""
    typer.echo(printable(line).replace("\n", "\\n"))
