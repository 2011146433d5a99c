"""Print tables and lines on standard output."""

import shlex

import typer
from rich.console import Console

from tsugiki.language import _
from tsugiki.report.table import Table, printable


def print_table(table: Table, *lines: str) -> None:
    """Print a table, and lines below it."""
    table.print()
    print_lines(*lines)


def print_lines(*lines: str) -> None:
    """Print lines of text, which the terminal wraps."""
    console = Console(highlight=False, markup=False)
    for line in lines:
        console.print(printable(line), soft_wrap=True)


def print_next_command(*words: str, err: bool = False) -> None:
    """Print the command that is useful next, quoted for the shell; with `err`, on standard error."""
    command = printable(shlex.join(["tsugiki", *words])).replace("\n", "\\n")
    typer.echo(_("next: {command}").format(command=command), err=err)


def print_line(line: str) -> None:
    """Print one line of text, in which control characters (from a file, for example) are escaped."""
    typer.echo(printable(line).replace("\n", "\\n"))
