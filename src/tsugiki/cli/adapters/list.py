"""`tsugiki adapters list`."""

from typing import Annotated

import typer

from tsugiki.cli.adapters.options import Library


def list_command(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, an object a line.")] = False,
    library: Library = None,
) -> None:
    """What is in the library: a line for each adapter, and for each broken folder why it is.

    `tsugiki adapters verify` looks closer: here configs are read, and of the weights names and shapes.
    """
    from tsugiki.adapters.library import library_folder, read_library
    from tsugiki.cli.tables import print_table, say
    from tsugiki.report.library import entry_line, library_table

    home = library or library_folder()
    entries = read_library(home)
    if as_json:
        for entry in entries:
            typer.echo(entry_line(entry))
        return
    if not entries:
        say(f"no adapters in {home} yet; `tsugiki adapters add FOLDER` copies one there, a run's for example")
        return
    if any(entry.info for entry in entries):
        print_table(library_table(entries), "perplexity: of the text that each run held out, before and after training")
    for entry in entries:
        if entry.broken:
            say(f"{entry.name} is broken: {entry.broken}")
