"""The commands below `tsugiki adapters`."""

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

adapters_app = typer.Typer(
    help="Manage the library of adapters; compare, verify, combine and convert adapters.",
    no_args_is_help=True,
    add_completion=False,
)
adapters_app.command("list")(list_command)
adapters_app.command("show")(show_command)
adapters_app.command("add")(add_command)
adapters_app.command("rename")(rename_command)
adapters_app.command("remove")(remove_command)
adapters_app.command("verify")(verify_command)
adapters_app.command("diff")(diff_command)
adapters_app.command("combine")(combine_command)
adapters_app.command("scale")(scale_command)
adapters_app.command("truncate")(truncate_command)
adapters_app.command("extract")(extract_command)
adapters_app.command("import")(import_command)
