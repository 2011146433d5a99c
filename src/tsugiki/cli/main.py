"""Run the `tsugiki` command, and print errors, interruptions and warnings in one line each.

The commands (`cli.app`) are imported inside `main`, so that Ctrl-C while Python imports them ends in one line, too.
"""

import logging
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from types import FrameType

from tsugiki.cli.launcher import is_main_process
from tsugiki.errors import Interrupted, OtherProcessError, TsugikiError, TsugikiWarning, is_ordinary
from tsugiki.io.system import STOP_SIGNALS, VERBOSE
from tsugiki.language import VARIABLE, _, choose_language

_SECONDS_FOR_MAIN = 10


def main() -> None:
    """Run the command line. Exit status: 2 for errors that the user can correct, 1 for bugs, 128 + n after signal n."""
    arguments = [argument for argument in sys.argv[1:] if argument not in ("--debug", "--verbose")]
    debug = "--debug" in sys.argv[1:]
    if "--verbose" in sys.argv[1:]:
        os.environ[VERBOSE] = "1"
    try:
        arguments = _take_language(arguments)
    except ValueError as error:
        _stop(str(error), 2, debug)
    warnings.showwarning = _notes_once()
    for number in STOP_SIGNALS:
        if number != signal.SIGINT:
            signal.signal(number, _interrupt)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # read when it is imported, inside a command
    _let_threads_wait_passively()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # an encoding such as cp932 lacks some characters
            stream.reconfigure(errors="replace")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # PEFT imports it, and it warns of missing kernels
    try:
        status = _run(arguments)
    except TsugikiError as error:
        from tsugiki.cli.mistakes import with_keyboard_hint

        _stop(with_keyboard_hint(str(error), arguments), 2, debug)
    except Interrupted as stop:
        if not is_main_process():  # the main process got the signal as well, and says so
            raise SystemExit(128 + stop.number) from None
        _stop(str(stop), 128 + stop.number, debug=False)
    except OtherProcessError:
        raise SystemExit(2) from None
    except BaseException as error:
        if _comes_from_keyboard(error):
            _stop_after_signal(debug)
        if not is_ordinary(error):
            raise
        message = _(
            "unexpected {kind}: {error} (--debug shows where; please report it)", kind=type(error).__name__, error=error
        )
        _stop(message, 1, debug)
    if status == 128 + signal.SIGINT:  # what typer returns after Ctrl-C
        _stop_after_signal(debug)
    raise SystemExit(status)


def _run(arguments: list[str]) -> int:
    """Run a command, and return the exit status."""
    import typer
    from typer.exceptions import TyperException

    from tsugiki.cli.app import root_command

    try:
        return int(root_command()(arguments, prog_name="tsugiki", standalone_mode=False) or 0)
    except typer.Abort as stop:
        raise Interrupted(signal.SIGINT, _("nothing was changed")) from stop
    except TyperException as error:
        from tsugiki.cli.mistakes import describe_usage_error

        raise TsugikiError(describe_usage_error(error)) from error


def _take_language(arguments: list[str]) -> list[str]:
    """Set the language that `--lang`, anywhere in the command, or `TSUGIKI_LANG` names; return the other arguments."""
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


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise Interrupted(number)


def _let_threads_wait_passively() -> None:
    """Let OpenMP's threads sleep while they wait for each other, unless the user has set how they wait.

    Otherwise they wait in a busy loop. If other programs use some of the cores, this takes processor time from the
    threads that they wait for. torch reads the variable when it is imported.
    """
    if not any(name in os.environ for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def _comes_from_keyboard(error: BaseException | None) -> bool:
    """Return whether Ctrl-C is the cause of an error; transformers converts it to an import error."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _stop_after_signal(debug: bool) -> None:
    _stop(str(Interrupted(signal.SIGINT)), 128 + signal.SIGINT, debug)


def _stop(message: str, status: int, debug: bool) -> None:
    if not is_main_process():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(_SECONDS_FOR_MAIN)  # if the main process has the same error, the launcher ends this process
    if debug:
        traceback.print_exc()
    print("tsugiki: " + " ".join(message.split()), file=sys.stderr)
    raise SystemExit(status)


def _notes_once() -> Callable[..., None]:
    """Return what prints Tsugiki's own warnings as notes, each text once. Warnings of libraries are for developers."""
    printed: set[str] = set()

    def say(message: Warning | str, category: type[Warning], *_place: object) -> None:
        if issubclass(category, TsugikiWarning) and str(message) not in printed:
            printed.add(str(message))
            print(_("note: {note}", note=message), file=sys.stderr)

    return say
