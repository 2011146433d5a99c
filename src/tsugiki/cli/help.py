"""Help texts in the user's language.

Commands, options and the fields of configs define their help in English. Before a command runs, `translate_help`
replaces these texts. So a new command needs only its Japanese texts in the catalogue.
"""

import inspect
from collections.abc import Iterator
from typing import Any

from typer import rich_utils

from tsugiki.language import ENGLISH, _, language, marked

_ATTRIBUTES = ("help", "short_help", "epilog", "rich_help_panel")
DEFAULT = marked("{help} (default: {value})")
"""The help of an option that has a default."""


def texts_of(command: Any) -> Iterator[tuple[Any, str]]:
    """Yield (object, attribute) for each help text of a command, its parameters and its subcommands."""
    for place in (command, *command.params):
        for name in _ATTRIBUTES:
            if isinstance(getattr(place, name, None), str):
                yield place, name
    for inner in getattr(command, "commands", {}).values():
        yield from texts_of(inner)


def message_of(text: str) -> tuple[str, str]:
    """Split a help text into the message in the catalogue, whose paragraphs are one line each, and the default value.

    Lines that are indented, and paragraphs marked with a backspace, stay as they are.
    """
    text, _separator, default = text.partition(DEFAULT.partition("{value}")[0].removeprefix("{help}"))
    paragraphs = inspect.cleandoc(text).split("\n\n")
    joined = [part if "\b" in part or "\n " in part else " ".join(part.split()) for part in paragraphs]
    return "\n\n".join(joined), default[:-1]


def translate_help(command: Any) -> None:
    """Translate the help texts of a command and its subcommands, and typer's own texts, to the user's language."""
    for place, name in texts_of(command):
        message, default = message_of(getattr(place, name))
        text = _(message) if message else ""
        setattr(place, name, _(DEFAULT).format(help=text, value=default) if default else text)
    if language() == ENGLISH:
        return
    rich_utils.ARGUMENTS_PANEL_TITLE = _("Arguments")
    rich_utils.OPTIONS_PANEL_TITLE = _("Options")
    rich_utils.COMMANDS_PANEL_TITLE = _("Commands")
    rich_utils.DEFAULT_STRING = _("[default: {value}]").format(value="{}")
    rich_utils.REQUIRED_LONG_STRING = _("[required]")
    _translate_usage(command)


def _translate_usage(command: Any) -> None:
    """Translate typer's own texts on the help page of every command."""
    usage, help_option = command.get_usage, command.get_help_option

    def get_usage(context: Any) -> str:
        return str(usage(context)).replace("Usage:", _("Usage:"), 1)

    def get_help_option(context: Any) -> Any:
        option = help_option(context)
        if option is not None:
            option.help = _("Show this message and exit.")
        return option

    command.get_usage, command.get_help_option = get_usage, get_help_option
    for inner in getattr(command, "commands", {}).values():
        _translate_usage(inner)
