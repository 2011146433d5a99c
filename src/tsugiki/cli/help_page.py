"""The help of a command: typer's tables, or a list in a narrow terminal, where tables cut names off; then examples."""

from collections import defaultdict
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.text import Text
from typer.core import TyperCommand, TyperGroup

from tsugiki.cli.examples import EXAMPLES
from tsugiki.cli.wrapping import wrap
from tsugiki.language import JAPANESE, _, language

_NARROW = 110  # columns


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
