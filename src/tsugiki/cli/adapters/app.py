"""The commands below `tsugiki adapters`."""

import typer

from tsugiki.cli.adapters.import_ import import_command

adapters_app = typer.Typer(
    help="Adapters as things to keep: a library of them by name, and what can be made of them.",
    no_args_is_help=True,
    add_completion=False,
)
adapters_app.command("import")(import_command)
