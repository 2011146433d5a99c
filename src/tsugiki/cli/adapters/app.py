"""The commands below `tsugiki adapters`."""

import typer

from tsugiki.cli.adapters.combine import combine_command
from tsugiki.cli.adapters.extract import extract_command
from tsugiki.cli.adapters.scale import scale_command
from tsugiki.cli.adapters.truncate import truncate_command

adapters_app = typer.Typer(
    help="Adapters as things to keep: a library of them by name, and what can be made of them.",
    no_args_is_help=True,
    add_completion=False,
)
adapters_app.command("combine")(combine_command)
adapters_app.command("scale")(scale_command)
adapters_app.command("truncate")(truncate_command)
adapters_app.command("extract")(extract_command)
