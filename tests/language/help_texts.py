"""Every help text of the commands, and the file of the command that has it."""

import inspect
from collections.abc import Iterator
from typing import Any

import typer

from tsugiki.cli import message_of, texts_of
from tsugiki.cli.app import app


def help_texts() -> Iterator[tuple[str, str]]:
    """Return (message, file), with a message once for each command that has it."""
    yield from _texts(typer.main.get_command(app), "src/tsugiki/cli/app.py")


def _texts(command: Any, file: str) -> Iterator[tuple[str, str]]:
    inner = getattr(command, "commands", {})
    if not inner:
        file = f"src/{inspect.unwrap(command.callback).__module__.replace('.', '/')}.py"
    below = {id(place) for one in inner.values() for place, _ in texts_of(one)}
    for place, name in texts_of(command):
        if id(place) not in below and (message := message_of(getattr(place, name))[0]):
            yield message, file
    for name, one in inner.items():
        yield from _texts(one, f"src/tsugiki/cli/{name}")
