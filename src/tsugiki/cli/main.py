"""The `tsugiki` command: run a subcommand, and print errors and warnings in one line each."""

import logging
import os
import signal
import sys
import time
import traceback
import warnings

import typer
from typer.exceptions import TyperException

from tsugiki.cli.adapters.app import adapters_app
from tsugiki.cli.aozora import aozora_command
from tsugiki.cli.bench import bench_command
from tsugiki.cli.compare import compare_command
from tsugiki.cli.evaluate import evaluate_command
from tsugiki.cli.export import export_command
from tsugiki.cli.generate import generate_command
from tsugiki.cli.help import translate_help
from tsugiki.cli.merge import merge_command
from tsugiki.cli.methods import methods_command
from tsugiki.cli.pretrain import pretrain_command
from tsugiki.cli.preview import preview_command
from tsugiki.cli.pull import pull_command
from tsugiki.cli.push import push_command
from tsugiki.cli.quickstart import quickstart_command
from tsugiki.cli.report import report_command
from tsugiki.cli.sweep import sweep_command
from tsugiki.cli.train import train_command
from tsugiki.errors import Interrupted, OtherProcessError, TsugikiError, is_ordinary
from tsugiki.language import VARIABLE, choose_language
from tsugiki.ranks import is_main_process

_SECONDS_FOR_MAIN = 10
_INTERRUPTED = 130  # exit status that typer returns after Ctrl-C

app = typer.Typer(
    help="LoRA fine-tuning on the machine you have. Start with `tsugiki quickstart`, which takes two minutes.",
    epilog="At any place: --lang en or --lang ja chooses the language, and --debug shows the traceback of an error. "
    "Errors are printed in one line, with exit status 2.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("quickstart")(quickstart_command)
app.command("aozora")(aozora_command)
app.command("preview")(preview_command)
app.command("train")(train_command)
app.command("pretrain")(pretrain_command)
app.command("methods")(methods_command)
app.command("compare")(compare_command)
app.command("sweep")(sweep_command)
app.command("report")(report_command)
app.command("bench")(bench_command)
app.command("eval")(evaluate_command)
app.command("generate")(generate_command)
app.command("merge")(merge_command)
app.command("push")(push_command)
app.command("pull")(pull_command)
app.command("export")(export_command)
app.add_typer(adapters_app, name="adapters")


def main() -> None:
    """Run the command line. Exit status: 2 for errors that the user can correct, 1 for bugs, 128 + n after signal n."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    try:
        arguments = _take_language(arguments)
    except ValueError as error:
        _stop(str(error), 2, debug)
    warnings.showwarning = _say_warning
    for number in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
        signal.signal(number, _interrupt)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # read when it is imported, inside a command
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # PEFT imports it, and it warns of missing kernels
    try:
        status = _run(arguments)
    except TsugikiError as error:
        _stop(str(error), 2, debug)
    except Interrupted as stop:
        _stop(str(stop), 128 + stop.number, debug=False)
    except OtherProcessError:
        raise SystemExit(2) from None
    except TyperException as error:
        _stop(f"{error.format_message()} (tsugiki --help lists commands and options)", 2, debug)
    except BaseException as error:
        if not is_ordinary(error):
            raise
        _stop(f"unexpected {type(error).__name__}: {error} (--debug shows where; please report it)", 1, debug)
    if status == _INTERRUPTED:
        _stop(
            "interrupted; finished work is kept: train and pretrain continue with --resume, others when run again",
            status,
            debug=False,
        )
    raise SystemExit(status)


def _run(arguments: list[str]) -> int | None:
    command = typer.main.get_command(app)
    translate_help(command)
    return command(arguments, standalone_mode=False)  # type: ignore[no-any-return]


def _take_language(arguments: list[str]) -> list[str]:
    """Set the language that `--lang`, at any place, or `TSUGIKI_LANG` names, and return the other arguments.

    Raises:
        ValueError: an unknown language, or none after `--lang`.
    """
    if name := os.environ.get(VARIABLE):
        choose_language(name)
    rest = []
    remaining = iter(arguments)
    for argument in remaining:
        if argument == "--lang":
            choose_language(next(remaining, ""))
        elif argument.startswith("--lang="):
            choose_language(argument.removeprefix("--lang="))
        else:
            rest.append(argument)
    return rest


def _interrupt(number: int, frame: object) -> None:
    raise Interrupted(number)


def _stop(message: str, status: int, debug: bool) -> None:
    if not is_main_process():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(_SECONDS_FOR_MAIN)  # if the main process has the same error, the launcher ends this process
    if debug:
        traceback.print_exc()
    print("tsugiki: " + " ".join(message.split()), file=sys.stderr)
    raise SystemExit(status)


def _say_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: object = None,
    line: str | None = None,
) -> None:
    """Print Tsugiki's own warnings as notes. Warnings of libraries are for developers and are not shown."""
    if issubclass(category, UserWarning) and "tsugiki" in filename:
        print(f"note: {message}", file=sys.stderr)
