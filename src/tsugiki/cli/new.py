"""`tsugiki new`: write the settings of a run after a few questions."""

import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from tsugiki.errors import TsugikiError
from tsugiki.language import _

_LISTED = (
    "model", "data", "held_out", "validation", "method", "lora.r", "lora.lora_alpha", "lora.lora_dropout", "minutes",
    "learning_rate", "prompts", "out",
)  # fmt: skip
"""The settings that a new file lists; `tsugiki train --print-config` lists all."""
_TEXTS = ("*.txt", "*.jsonl")
_MINUTES = 10.0


def new_command(
    file: Annotated[
        Path | None, typer.Argument(help="YAML file to write, which must not exist. Default: named after the text.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="The text to learn: a file or a folder.")] = None,
    model: Annotated[
        str | None, typer.Option(help="The base model: 'embedded', a model folder, a GGUF file, or a hub id.")
    ] = None,
    minutes: Annotated[float | None, typer.Option(help="How many minutes the run may take.")] = None,
    out: Annotated[str | None, typer.Option(help="Folder for the adapter.")] = None,
    preview: Annotated[
        bool, typer.Option("--preview/--no-preview", help="Show what would be learned, and how long it takes.")
    ] = True,
) -> None:
    """Ask for a text, a base, a time and a folder, show a preview, and write the settings of a run to a YAML file.

    Enter takes the default. Nothing is asked that a flag answers, or if the input is not a terminal.
    """
    from tsugiki.cli.checks import check_model, check_new_folder
    from tsugiki.cli.settings_file import settings_text
    from tsugiki.cli.tables import print_line, print_next_command
    from tsugiki.data.read.files import check_data
    from tsugiki.io.atomic import new_file
    from tsugiki.training.config import RunConfig

    interactive = sys.stdin.isatty()
    if data is None and not interactive:
        raise TsugikiError(_("--data missing: there is no terminal to ask for the text"))
    data = _answer(interactive, data, _("Text to learn (file or folder)"), _only_text(), check_data)
    question = _("Base model ('embedded', folder, GGUF file or hub id)")
    model = _answer(interactive, model, question, "embedded", check_model)
    minutes = _answer(interactive, minutes, _("Minutes that the run may take"), _MINUTES, _check_minutes)
    name = Path(data).stem or "text"
    out = _answer(interactive, out, _("Folder for the adapter"), f"runs/{name}", check_new_folder)
    given = {"model": model, "data": data, "out": out, "minutes": minutes}
    path = file or Path(f"{name}.yaml")
    with new_file(path) as temporary:
        temporary.write_text(settings_text(RunConfig, given, only=_LISTED), encoding="utf-8")
        if preview:
            _show_preview(given)
    print_line(_("settings: {path}").format(path=path))
    print_next_command("train", str(path))


def _answer(interactive: bool, given: Any, question: str, default: Any, check: Callable[[Any], object]) -> Any:
    """Return the value of a flag, or else the user's answer, or the default if the input is not a terminal."""
    if given is not None or not interactive:
        value = default if given is None else given
        check(value)
        return value
    while True:
        value = typer.prompt(question, default=default, type=str if default is None else type(default))
        try:
            check(value)
        except TsugikiError as error:
            typer.echo(str(error))
        else:
            return value


def _only_text() -> str | None:
    """Return the text in the working directory, if there is exactly one."""
    texts = [path for pattern in _TEXTS for path in Path().glob(pattern)]
    return str(texts[0]) if len(texts) == 1 else None


def _check_minutes(minutes: float) -> None:
    if not 0 < minutes < math.inf:
        raise TsugikiError(_("the time is a number of minutes above 0"))


def _show_preview(settings: Mapping[str, Any]) -> None:
    from rich.console import Console

    from tsugiki.io.progress import ProgressDisplay
    from tsugiki.report.preview import to_terminal
    from tsugiki.training.config import RunConfig
    from tsugiki.training.workflows.preview import preview

    shown = preview(RunConfig.model_validate(dict(settings)), 1, ProgressDisplay())
    console = Console(highlight=False)
    console.print(to_terminal(shown, colours=console.color_system is not None))
