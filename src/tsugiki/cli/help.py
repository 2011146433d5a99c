"""The help of commands: in the user's language, readable at any width, and with examples at its end.

Commands, options and the fields of configs define their help in English. Before a command runs, `translate_help`
replaces these texts. So a new command needs only its Japanese texts in the catalogue.
"""

import inspect
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.text import Text
from typer import rich_utils
from typer.core import TyperCommand, TyperGroup

from tsugiki.cli.examples import EXAMPLES
from tsugiki.language import ENGLISH, JAPANESE, _, language, marked
from tsugiki.report.table import wrap

_ATTRIBUTES = ("help", "short_help", "epilog", "rich_help_panel")
DEFAULT = marked("{help} (default: {value})")
"""The help of an option that has a default."""
_NARROW = 110  # columns: tables would cut names off


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


class Command(TyperCommand):
    """A command whose help is readable at any width, and ends with examples."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help."""
        console = Console(highlight=False)
        if console.width < _NARROW or language() == JAPANESE:
            _print_list(console, self, ctx)
        else:
            super().format_help(ctx, formatter)
        _print_examples(console, ctx)


class Group(TyperGroup):
    """A group of commands whose help ends with examples."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help."""
        console = Console(highlight=False)
        if language() == JAPANESE:
            _print_list(console, self, ctx)
            _print_commands(console, self)
        else:
            super().format_help(ctx, formatter)
        _print_examples(console, ctx)


def _print_list(console: Console, command: Command | Group, context: Any) -> None:
    console.print(Text(command.get_usage(context), style="bold"))
    console.print()
    _print_paragraphs(console, _plain(command.help or ""), 0)
    panels: defaultdict[str, list[Any]] = defaultdict(list)
    for parameter in command.get_params(context):
        panels[_panel(parameter)].append(parameter)
    for title in sorted(panels, key=lambda title: title == _("Options")):  # general options last
        console.print(Text(f"\n{title}", style="bold"))
        for parameter in panels[title]:
            name, text = parameter.get_help_record(context) or ("", "")
            console.print(Padding(Text(name, style="cyan"), (0, 0, 0, 2)))
            _print_paragraphs(console, _with_default(parameter.help or "", text), 6)


def _print_commands(console: Console, group: Group) -> None:
    panels: defaultdict[str, list[Any]] = defaultdict(list)
    for command in group.commands.values():
        panels[getattr(command, "rich_help_panel", None) or _("Commands")].append(command)
    for title, commands in panels.items():
        console.print(Text(f"\n{title}", style="bold"))
        for command in commands:
            console.print(Padding(Text(command.name or "", style="cyan"), (0, 0, 0, 2)))
            _print_paragraphs(console, _plain(command.help or "").split("\n\n")[0], 6)
    if group.epilog:
        console.print()
        _print_paragraphs(console, _plain(group.epilog), 0)


def _print_paragraphs(console: Console, text: str, indent: int) -> None:
    for line in wrap(text, console.width - indent):
        console.print(Text(" " * indent + line), soft_wrap=True)


def _print_examples(console: Console, context: Any) -> None:
    lines = EXAMPLES.get(context.command_path.partition(" ")[2], ())
    if lines:
        console.print(Text("\n".join(["", _("Examples"), *(f"  {line}" for line in lines)])), soft_wrap=True)


def _panel(parameter: Any) -> str:
    is_argument = parameter.param_type_name == "argument"
    return getattr(parameter, "rich_help_panel", None) or (_("Arguments") if is_argument else _("Options"))


def _with_default(help_text: str, record: str) -> str:
    """Return the help of a parameter with translated additions, which `record` has in English: `[default: 1; x>=1]`."""
    parts = []
    for part in record.removeprefix(help_text).strip().removeprefix("[").removesuffix("]").split("; "):
        if part == "required":
            parts.append(_("[required]"))
        elif part.startswith("default: "):
            parts.append(_("[default: {value}]").format(value=part.removeprefix("default: ")))
        elif part:
            parts.append(f"[{part}]")
    return " ".join([_plain(help_text), *parts])


def _plain(text: str) -> str:
    """Return a help text without rich's escapes, its paragraphs as one line each."""
    paragraphs = text.replace(r"\[", "[").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
