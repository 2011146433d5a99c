"""Tables on standard output."""

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:  # which draws plots besides
    from tsugiki.report.methods import Table as Cells

_PLAIN_WIDTH = 150  # where no terminal bounds it


def print_table(cells: "Cells", *lines: str) -> None:
    """A table, and lines below it."""
    console = Console(highlight=False, markup=False)  # brackets in a cell are meant
    if not console.is_terminal:
        console.width = _PLAIN_WIDTH
    headers, rows = cells
    table = Table(*headers)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for line in lines:
        console.print(line, soft_wrap=True)
