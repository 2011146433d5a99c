"""Print tables and lines on standard output."""

import shlex
from collections.abc import Sequence

import typer
from rich.cells import cell_len
from rich.console import Console

from tsugiki.language import _
from tsugiki.report.sections import Facts, Folded, Lines, Part, Samples, Section, Sentence
from tsugiki.report.table import Table, printable

_LABEL = 15  # columns


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
            for label, text in part.texts:
                print_line(f"{label}: {part.prompt}{text.rstrip()}".replace("\n", "⏎"))
        case Folded():
            for inner in part.parts:
                _print_part(inner)
        case Sentence():
            print_lines(part.text)


def print_next_command(*words: str, err: bool = False) -> None:
    """Print the command that is useful next, quoted for the shell; with `err`, on standard error."""
    command = printable(shlex.join(["tsugiki", *words])).replace("\n", "\\n")
    typer.echo(_("next: {command}").format(command=command), err=err)


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
