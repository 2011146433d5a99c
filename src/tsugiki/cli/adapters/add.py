"""`tsugiki adapters add`."""

from pathlib import Path
from typing import Annotated

import typer

from tsugiki.cli.adapters.options import Library


def add_command(
    source: Annotated[Path, typer.Argument(help="An adapter's folder, such as a run's folder or one written by PEFT.")],
    name: Annotated[str | None, typer.Option(help="Its name in the library; if unset, the name of the folder.")] = None,
    library: Library = None,
) -> None:
    """Copy an adapter into the library. It must be complete; an existing adapter is never overwritten."""
    from tsugiki.adapters.library import copy_into_library, library_folder
    from tsugiki.cli.tables import print_next_command

    folder = copy_into_library(source, library or library_folder(), name)
    typer.echo(str(folder))
    print_next_command("chat", str(folder) if library else folder.name)
