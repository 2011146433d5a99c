"""`tsugiki adapters add`."""

from pathlib import Path
from typing import Annotated

import typer

from tsugiki.cli.adapters.options import Library


def add_command(
    source: Annotated[Path, typer.Argument(help="An adapter's folder, such as a run's or one that PEFT wrote.")],
    name: Annotated[str | None, typer.Option(help="What to call it; as its folder if unset.")] = None,
    library: Library = None,
) -> None:
    """Copy an adapter into the library, if it is whole. Nothing is ever overwritten."""
    from tsugiki.adapters.library import copy_into_library, library_folder

    typer.echo(str(copy_into_library(source, library or library_folder(), name)))
