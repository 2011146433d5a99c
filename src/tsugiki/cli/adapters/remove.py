"""`tsugiki adapters remove`."""

import sys
from typing import Annotated

import typer

from tsugiki.cli.adapters.options import Library
from tsugiki.errors import TsugikiError, summarise_list
from tsugiki.language import _


def remove_command(
    names: Annotated[list[str], typer.Argument(help="Names in the library.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
    library: Library = None,
) -> None:
    """Remove adapters from the library permanently. Of a link to a folder, only the link is removed."""
    from tsugiki.adapters.library import library_folder, member
    from tsugiki.io.atomic import remove_folder

    folders = [member(name, library or library_folder()) for name in dict.fromkeys(names)]
    if not yes:
        if not sys.stdin.isatty():
            raise TsugikiError(
                _(
                    "cannot ask for confirmation (stdin is not a terminal); pass --yes to remove the adapters "
                    "permanently"
                )
            )
        if not typer.confirm(
            _("Remove {names} permanently?").format(names=summarise_list([folder.name for folder in folders]))
        ):
            raise typer.Exit(1)
    for folder in folders:
        remove_folder(folder)
        typer.echo(_("removed {folder}").format(folder=folder))
