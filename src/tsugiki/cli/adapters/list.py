"""`tsugiki adapters list`."""

from typing import Annotated

import typer

from tsugiki.cli.adapters.options import Library
from tsugiki.language import ENGLISH, _, choose_language


def list_command(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, one object per line.")] = False,
    library: Library = None,
) -> None:
    """List the adapters in the library, and what is wrong with those that are broken.

    Only the configs and the names and shapes of the weights are read; `tsugiki adapters verify` checks everything.
    """
    from tsugiki.adapters.library import library_folder, read_library
    from tsugiki.cli.tables import print_line, print_table
    from tsugiki.report.library import entry_line, library_table

    if as_json:
        choose_language(ENGLISH)  # of the reasons why adapters are broken
    home = library or library_folder()
    entries = read_library(home)
    if as_json:
        for entry in entries:
            typer.echo(entry_line(entry))
        return
    if not entries:
        print_line(
            _(
                "no adapters in {home}; `tsugiki adapters add FOLDER` copies one there, such as the folder of a run"
            ).format(home=home)
        )
        return
    if any(entry.info for entry in entries):
        print_table(
            library_table(entries),
            _("perplexity: on the held-out text of each adapter's run, before and after training"),
        )
    for entry in entries:
        if entry.broken:
            print_line(_("{name} is broken: {broken}").format(name=entry.name, broken=entry.broken))
