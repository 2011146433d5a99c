"""Every help text of the commands, and the file of the command that has it."""

from collections.abc import Iterator
from typing import Any

import typer

from tsugiki.cli import HELP_ATTRIBUTES, message_of, root_command
from tsugiki.language import ENGLISH, speaking
from tsugiki.training import RunConfig, settings_of


def help_texts() -> Iterator[tuple[str, str]]:
    """Return (message, file), with a message once for each command that has it."""
    with speaking(ENGLISH):
        yield from _texts(root_command(), "src/tsugiki/cli/app.py")
        for setting in settings_of(RunConfig):  # also those without a flag, which --print-config describes
            yield setting.description.replace("[", r"\["), "src/tsugiki/training/settings/config.py"


def _texts(command: Any, file: str) -> Iterator[tuple[str, str]]:
    inner = getattr(command, "commands", {})
    if not inner:
        file = f"src/{command.function.__module__.replace('.', '/')}.py"
    own = command.get_params(typer.Context(command))[:-1]  # the last is --help
    for place in (command, *own):
        for name in HELP_ATTRIBUTES:
            if message := message_of(getattr(place, name, None) or "")[0]:
                yield message, file
    for name, one in inner.items():
        yield from _texts(one, f"src/tsugiki/cli/{name}")
