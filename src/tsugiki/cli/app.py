"""The commands of `tsugiki`, in groups."""

from collections.abc import Callable
from typing import Annotated, Any

import typer

from tsugiki.cli.adapters.app import adapters_app
from tsugiki.cli.aozora import aozora_command
from tsugiki.cli.bench import bench_command
from tsugiki.cli.cache import cache_app
from tsugiki.cli.chat import chat_command
from tsugiki.cli.compare import compare_command
from tsugiki.cli.evaluate import evaluate_command
from tsugiki.cli.export import export_command
from tsugiki.cli.generate import generate_command
from tsugiki.cli.help_page import Command, Group
from tsugiki.cli.merge import merge_command
from tsugiki.cli.methods import methods_command
from tsugiki.cli.new import new_command
from tsugiki.cli.plan import plan_command
from tsugiki.cli.pretrain import pretrain_command
from tsugiki.cli.preview import preview_command
from tsugiki.cli.pull import pull_command
from tsugiki.cli.push import push_command
from tsugiki.cli.quickstart import quickstart_command
from tsugiki.cli.report import report_command
from tsugiki.cli.serve import serve_command
from tsugiki.cli.sweep import sweep_command
from tsugiki.cli.tour import print_tour
from tsugiki.cli.train import train_command
from tsugiki.cli.version import version_line

MAKE, LOOK, KEEP, SHARE = "Make an adapter", "Look at it", "Keep it", "Share it"
"""The groups of commands."""

app = typer.Typer(
    cls=Group,
    help="LoRA fine-tuning on the machine you have. `tsugiki` alone shows the way from a text to an adapter.",
    epilog="At any place: --lang en or --lang ja chooses the language, and --debug shows the traceback of an error. "
    "Errors are printed in one line, with exit status 2.",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)


def _add(group: str, name: str, command: Callable[..., None]) -> None:
    app.command(name, cls=Command, rich_help_panel=group)(command)


_add(MAKE, "quickstart", quickstart_command)
_add(MAKE, "new", new_command)
_add(MAKE, "aozora", aozora_command)
_add(MAKE, "train", train_command)
_add(MAKE, "compare", compare_command)
_add(MAKE, "sweep", sweep_command)
_add(MAKE, "pretrain", pretrain_command)
_add(LOOK, "plan", plan_command)
_add(LOOK, "preview", preview_command)
_add(LOOK, "generate", generate_command)
_add(LOOK, "serve", serve_command)
_add(LOOK, "chat", chat_command)
_add(LOOK, "eval", evaluate_command)
_add(LOOK, "report", report_command)
_add(LOOK, "methods", methods_command)
_add(LOOK, "bench", bench_command)
_add(KEEP, "merge", merge_command)
app.add_typer(adapters_app, name="adapters", cls=Group, rich_help_panel=KEEP)
app.add_typer(cache_app, name="cache", cls=Group, rich_help_panel=KEEP)
_add(SHARE, "push", push_command)
_add(SHARE, "pull", pull_command)
_add(SHARE, "export", export_command)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(version_line())
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _without_command(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", "-V", is_eager=True, callback=_print_version, help="Show versions and exit.")
    ] = False,
) -> Any:
    if context.invoked_subcommand is None:
        print_tour()
