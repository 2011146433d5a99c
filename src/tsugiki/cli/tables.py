"""Print tables and text on standard output."""

import shlex

import typer
from rich.console import Console
from rich.table import Table

from tsugiki.cli.wrapping import has_wide
from tsugiki.language import _
from tsugiki.report.formatting import Table as Cells
from tsugiki.report.formatting import printable

_WIDTH = 150  # if the output is not a terminal


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
    console.print(table)
    for line in lines:
        console.print(printable(line), soft_wrap=True)


def say_next(*words: str, err: bool = False) -> None:
    """Print the command that is useful next, quoted for the shell; with `err`, on standard error."""
    command = printable(shlex.join(["tsugiki", *words])).replace("\n", "\\n")
    typer.echo(_("next: {command}").format(command=command), err=err)


def say(line: str) -> None:
    """Print one line of text, in which control characters (from a file, for example) are escaped."""
    typer.echo(printable(line).replace("\n", "\\n"))
