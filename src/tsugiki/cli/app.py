"""The commands of `tsugiki`, in groups, and what it says without a command: a tour, and versions.

torch, whose import takes seconds, is not imported here.
"""

import os
import platform
import sys
from pathlib import Path
from typing import Annotated

import typer

from tsugiki.cli import adapters
from tsugiki.cli.before_a_run import aozora_command, new_command, pairs_command, plan_command, preview_command
from tsugiki.cli.help import Commands, Group, new_group
from tsugiki.cli.look import evaluate_command, methods_command, report_command
from tsugiki.cli.share import export_command, merge_command, pull_command, push_command
from tsugiki.cli.talk import chat_command, generate_command, serve_command
from tsugiki.cli.train import quickstart_command, sweep_command, train_command
from tsugiki.io.file_names import DATA_SUFFIXES
from tsugiki.language import _, marked, ngettext

_TOUR = marked("""\
A small adapter is trained on your text, on top of a language model that
stays as it is. The steps, as in the guides' tutorial about an author:

  try it, offline            tsugiki quickstart
  get texts                  tsugiki aozora --author 泉鏡花 --kana old --title の --out kyoka.jsonl
  answer four questions      tsugiki new
  see what will be learned   tsugiki preview --model embedded --data kyoka.jsonl
  train                      tsugiki train --model embedded --data kyoka.jsonl --out runs/kyoka
  read what it writes        tsugiki generate --adapter runs/kyoka --prompt 夏の夕暮、 --compare
  talk to it                 tsugiki chat runs/kyoka
  measure it                 tsugiki eval --adapter runs/kyoka --data other.txt
  keep it by name            tsugiki adapters add runs/kyoka
  give it away               tsugiki push kyoka USER/kyoka

Larger bases (parameters, download, time for 100,000 characters, licence):
{bases}

Files of texts: {kinds}
Each command ends with the next one; tsugiki COMMAND --help has examples,
tsugiki --help lists all.
""")
_NVIDIA_GPUS = Path("/proc/driver/nvidia/gpus")
"""The folder in which NVIDIA's driver for Linux describes each GPU."""

MAKE, LOOK, KEEP, SHARE = "Make an adapter", "Look at it", "Keep it", "Share it"
"""The groups of commands."""

_app = typer.Typer(
    cls=Group,
    help="LoRA fine-tuning on the machine you have. `tsugiki` alone shows the way from a text to an adapter.",
    epilog="At any place: --lang en or --lang ja chooses the language, --verbose shows more of how a run works, and "
    "--debug the traceback of an error. Errors are printed in one line, with exit status 2.",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)

_COMMANDS: Commands = {
    "quickstart": (MAKE, quickstart_command),
    "new": (MAKE, new_command),
    "aozora": (MAKE, aozora_command),
    "train": (MAKE, train_command),
    "pairs": (MAKE, pairs_command),
    "sweep": (MAKE, sweep_command),
    "plan": (LOOK, plan_command),
    "preview": (LOOK, preview_command),
    "generate": (LOOK, generate_command),
    "serve": (LOOK, serve_command),
    "chat": (LOOK, chat_command),
    "eval": (LOOK, evaluate_command),
    "report": (LOOK, report_command),
    "methods": (LOOK, methods_command),
    "merge": (KEEP, merge_command),
    "push": (SHARE, push_command),
    "pull": (SHARE, pull_command),
    "export": (SHARE, export_command),
}


def root_command() -> Group:
    """Return the command `tsugiki` with all others below it, their help in the user's language."""
    root = Group.of(_app, _COMMANDS)
    root.add_command(new_group("adapters", adapters.__doc__ or "", KEEP, adapters.ADAPTERS))
    return root


def _print_version(value: bool) -> None:
    if value:
        typer.echo(version_line())
        raise typer.Exit


@_app.callback(invoke_without_command=True)
def _without_command(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", "-V", is_eager=True, callback=_print_version, help="Show versions and exit.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        from tsugiki.base.recommended import describe_base, recommended_bases

        bases = "\n".join(f"  {describe_base(base)}" for base in recommended_bases())
        tour = _(_TOUR, bases=bases, kinds=" ".join(DATA_SUFFIXES))
        typer.echo(f"{version_line()}\n\n{tour}", nl=False)


def version_line() -> str:
    """Return the versions of Tsugiki and of the libraries that matter most, the device and C functions, in one line."""
    from importlib.metadata import version

    from tsugiki.native import is_compiled

    torch_version = version("torch")
    libraries = f"torch {torch_version}, transformers {version('transformers')}"
    python = f"Python {platform.python_version()}"
    native = _("with C functions") if is_compiled() else _("without C functions")
    return f"tsugiki {version('tsugiki')} ({libraries}, {python}; {_device(torch_version)}; {native})"


def _device(torch_version: str) -> str:
    """Return the accelerator that the installed torch can use, judged by files only, or else the processor."""
    if sys.platform == "darwin" and platform.machine() == "arm64":
        return "mps"
    if torch_version.partition("+")[2] != "cpu":
        gpus = [_model(path) for path in sorted(_NVIDIA_GPUS.glob("*/information"))]
        if gpus:
            return "cuda: " + ", ".join(gpus)
    cores = os.cpu_count() or 1
    counted = ngettext("{count} core", "{count} cores", cores, count=cores)
    return f"{platform.system()} {platform.machine()}, {counted}"


def _model(information: Path) -> str:
    """Return the name of a GPU, from lines such as `Model:  NVIDIA H100`."""
    try:
        lines = information.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("Model:")), "a GPU")
