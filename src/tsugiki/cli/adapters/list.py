"""`tsugiki adapters list`."""

from typing import Annotated

import typer

from tsugiki.cli.adapters.options import Library


def list_command(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, one object per line.")] = False,
    library: Library = None,
) -> None:
    """List the adapters in the library, and what is wrong with those that are broken.

    Only the configs and the names and shapes of the weights are read; `tsugiki adapters verify` checks everything.
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
        say(f"no adapters in {home}; `tsugiki adapters add FOLDER` copies one there, such as the folder of a run")
        return
    if any(entry.info for entry in entries):
        print_table(
            library_table(entries), "perplexity: on the held-out text of each adapter's run, before and after training"
        )
    for entry in entries:
        if entry.broken:
            say(f"{entry.name} is broken: {entry.broken}")
