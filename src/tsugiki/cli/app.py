"""The commands of `tsugiki`, in groups, and what it says without a command: a tour, and versions.

torch, whose import takes seconds, is not imported here.
"""

import os
import platform
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from tsugiki.cli.adapters import adapters_app
from tsugiki.cli.before_a_run import aozora_command, new_command, plan_command, preview_command
from tsugiki.cli.flags import add_command_to
from tsugiki.cli.help import Group
from tsugiki.cli.look import bench_command, cache_app, evaluate_command, methods_command, report_command
from tsugiki.cli.serve import serve_command
from tsugiki.cli.share import export_command, merge_command, pull_command, push_command
from tsugiki.cli.talk import chat_command, generate_command
from tsugiki.cli.train import compare_command, pretrain_command, quickstart_command, sweep_command, train_command
from tsugiki.language import _, marked, ngettext
from tsugiki.native import is_compiled

_TOUR = marked("""\
A small adapter is trained on your text, on top of a language model that
stays as it is. The way from a text to an adapter:

  try it, offline            tsugiki quickstart
  get texts                  tsugiki aozora --author 梶井基次郎 --out kajii.jsonl
  answer four questions      tsugiki new
  see what will be learned   tsugiki preview --model embedded --data kajii.jsonl
  train                      tsugiki train --model embedded --data kajii.jsonl --out runs/kajii
  read what it writes        tsugiki generate --adapter runs/kajii --prompt 檸檬は
  talk to it                 tsugiki chat runs/kajii
  measure it                 tsugiki eval --adapter runs/kajii --data other.txt
  keep it by name            tsugiki adapters add runs/kajii
  give it away               tsugiki push kajii USER/kajii

A text of your own is a .txt file, or .jsonl, .csv or .parquet. Each command
ends with the next one; tsugiki COMMAND --help has examples, and
tsugiki --help lists all commands.
""")
_NVIDIA_GPUS = Path("/proc/driver/nvidia/gpus")
"""The folder in which NVIDIA's driver for Linux describes each GPU."""

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

_COMMANDS: dict[str, tuple[str, Callable[..., None]]] = {
    "quickstart": (MAKE, quickstart_command),
    "new": (MAKE, new_command),
    "aozora": (MAKE, aozora_command),
    "train": (MAKE, train_command),
    "compare": (MAKE, compare_command),
    "sweep": (MAKE, sweep_command),
    "pretrain": (MAKE, pretrain_command),
    "plan": (LOOK, plan_command),
    "preview": (LOOK, preview_command),
    "generate": (LOOK, generate_command),
    "serve": (LOOK, serve_command),
    "chat": (LOOK, chat_command),
    "eval": (LOOK, evaluate_command),
    "report": (LOOK, report_command),
    "methods": (LOOK, methods_command),
    "bench": (LOOK, bench_command),
    "merge": (KEEP, merge_command),
    "push": (SHARE, push_command),
    "pull": (SHARE, pull_command),
    "export": (SHARE, export_command),
}
for _name, (_group, _function) in _COMMANDS.items():
    add_command_to(app, _name, _function, _group)
app.add_typer(adapters_app, name="adapters", cls=Group, rich_help_panel=KEEP)
app.add_typer(cache_app, name="cache", cls=Group, rich_help_panel=KEEP)


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
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(f"{version_line()}\n\n{_(_TOUR)}", nl=False)


def version_line() -> str:
    """Return the versions of Tsugiki and of the libraries that matter most, the device and C functions, in one line."""
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    native = _("with C functions") if is_compiled() else _("without C functions")
    return f"tsugiki {version('tsugiki')} ({libraries}, Python {platform.python_version()}; {_device()}; {native})"


def _device() -> str:
    """Return the accelerator that the installed torch can use, judged by files only, or else the processor."""
    build = version("torch").partition("+")[2]
    if sys.platform == "darwin" and platform.machine() == "arm64":
        return "mps"
    if build != "cpu":
        gpus = [_model(path) for path in sorted(_NVIDIA_GPUS.glob("*/information"))]
        if gpus:
            return "cuda: " + ", ".join(gpus)
    cores = os.cpu_count() or 1
    counted = ngettext("{count} core", "{count} cores", cores).format(count=cores)
    return f"{platform.system()} {platform.machine()}, {counted}"


def _model(information: Path) -> str:
    """Return the name of a GPU, from lines such as `Model:  NVIDIA H100`."""
    try:
        lines = information.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("Model:")), "a GPU")
