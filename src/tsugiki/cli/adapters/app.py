"""The commands below `tsugiki adapters`."""

from collections.abc import Callable

import typer

from tsugiki.cli.adapters.add import add_command
from tsugiki.cli.adapters.combine import combine_command
from tsugiki.cli.adapters.diff import diff_command
from tsugiki.cli.adapters.extract import extract_command
from tsugiki.cli.adapters.import_ import import_command
from tsugiki.cli.adapters.list import list_command
from tsugiki.cli.adapters.remove import remove_command
from tsugiki.cli.adapters.rename import rename_command
from tsugiki.cli.adapters.scale import scale_command
from tsugiki.cli.adapters.show import show_command
from tsugiki.cli.adapters.truncate import truncate_command
from tsugiki.cli.adapters.verify import verify_command
from tsugiki.cli.help_page import Command

adapters_app = typer.Typer(help="Manage the library of adapters; compare, verify, combine and convert adapters.")

LIBRARY, CHECK, MAKE = "The library", "Look and check", "Make from others"
"""The groups of commands."""


@adapters_app.callback(invoke_without_command=True)
def _without_command(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def _add(group: str, name: str, command: Callable[..., None]) -> None:
    adapters_app.command(name, cls=Command, rich_help_panel=group)(command)


_add(LIBRARY, "list", list_command)
_add(LIBRARY, "add", add_command)
_add(LIBRARY, "rename", rename_command)
_add(LIBRARY, "remove", remove_command)
_add(CHECK, "show", show_command)
_add(CHECK, "diff", diff_command)
_add(CHECK, "verify", verify_command)
_add(MAKE, "combine", combine_command)
_add(MAKE, "scale", scale_command)
_add(MAKE, "truncate", truncate_command)
_add(MAKE, "extract", extract_command)
_add(MAKE, "import", import_command)
