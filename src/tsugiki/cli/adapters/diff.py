"""`tsugiki adapters diff`."""

from typing import Annotated

import typer

from tsugiki.cli.adapters.options import ADAPTER_HELP, Library
from tsugiki.language import _


def diff_command(
    first: Annotated[str, typer.Argument(help=ADAPTER_HELP)],
    second: Annotated[str, typer.Argument(help=ADAPTER_HELP)],
    library: Library = None,
) -> None:
    """Compare two adapters: their settings, and the distance between their updates in each layer.

    A cosine of 1 means the same direction, and 0 means orthogonal. A layer that only one adapter has counts as zero in
    the other.
    """
    from tsugiki.adapters.library import adapter_folder
    from tsugiki.cli.tables import print_line, print_table
    from tsugiki.report.difference import compare_adapters

    comparison = compare_adapters(adapter_folder(first, library), adapter_folder(second, library))
    for table in (comparison.settings, comparison.matrices):
        if table[1]:
            print_table(table)
    for note in comparison.notes:
        print_line(_("note: {note}").format(note=note))
