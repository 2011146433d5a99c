"""Tables on standard output."""

import typer
from rich.console import Console
from rich.table import Table

from tsugiki.report.formatting import Table as Cells
from tsugiki.report.formatting import printable

_PLAIN_WIDTH = 150  # where no terminal bounds it


def print_table(cells: "Cells", *lines: str) -> None:
    """A table, and lines below it."""
    console = Console(highlight=False, markup=False)  # brackets in a cell are meant
    if not console.is_terminal:
        console.width = _PLAIN_WIDTH
    headers, rows = cells
    table = Table()
    for place, header in enumerate(headers):  # in a narrow terminal names and figures stay whole, texts are wrapped
        table.add_column(header, no_wrap=place == 0 or not any(" " in row[place] for row in rows))
    for row in rows:
        table.add_row(*map(printable, row))
    console.print(table)
    for line in lines:
        console.print(printable(line), soft_wrap=True)


def say(line: str) -> None:
    """One line of text, a part of which may come from anybody's file."""
    typer.echo(printable(line).replace("\n", "\\n"))
