"""`tsugiki adapters rename`."""

from typing import Annotated

import typer

from tsugiki.cli.adapters.options import Library


def rename_command(
    old: Annotated[str, typer.Argument(help="The current name in the library.")],
    new: Annotated[str, typer.Argument(help="The new name.")],
    library: Library = None,
) -> None:
    """Rename an adapter in the library."""
    from tsugiki.adapters.library import library_folder, rename_adapter

    typer.echo(str(rename_adapter(old, new, library or library_folder())))
