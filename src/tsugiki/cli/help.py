"""Commands and groups of commands, and their help: in the user's language, readable at any width, with examples.

Commands, options and the fields of configs define their help in English, and a new one needs only its Japanese texts
in the catalogue.
"""

import inspect
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, cast

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.text import Text
from typer.core import TyperCommand, TyperGroup

from tsugiki.cli.flags import DEFAULT, as_command, examples_of, is_hidden, show_all, summary_of
from tsugiki.language import JAPANESE, _, language
from tsugiki.report.table import wrap

Commands: TypeAlias = Mapping[str, tuple[str | None, Callable[..., None]]]
"""Name of a command -> panel of the help, and function."""
HELP_ATTRIBUTES = ("help", "epilog", "rich_help_panel")
"""The attributes of commands and parameters that hold texts of the help."""
_INDENT = 6  # columns before the help of a parameter
_NARROW = 110  # columns: tables would cut names off


def message_of(text: str) -> tuple[str, str]:
    """Split a help text into the message in the catalogue, whose paragraphs are one line each, and the default value.

    Lines that are indented, and paragraphs marked with a backspace, stay as they are.
    """
    text, _separator, default = text.partition(DEFAULT.partition("{value}")[0].removeprefix("{help}"))
    paragraphs = inspect.cleandoc(text).split("\n\n")
    joined = [part if "\b" in part or "\n " in part else " ".join(part.split()) for part in paragraphs]
    return "\n\n".join(joined), default[:-1]


def _translate(place: Any) -> None:
    """Translate the help texts of a command or a parameter to the user's language."""
    for name in HELP_ATTRIBUTES:
        if isinstance(text := getattr(place, name, None), str):
            message, default = message_of(text)
            translated = _(message) if message else ""
            setattr(place, name, _(DEFAULT, help=translated, value=default) if default else translated)


class Command(TyperCommand):
    """A command of a function (`flags.as_command`), whose help is readable at any width, and ends with examples.

    Its parameters are read when it runs or shows its help, because those of `tsugiki train` import pydantic. If some
    of them are hidden, `--help` shows the first sentences about each of the others, and `--help-all` everything.
    """

    def __init__(self, name: str, function: Callable[..., None], panel: str | None = None) -> None:
        """Create the command, in a panel of its group's help."""
        docstring = inspect.getdoc(function) or ""
        super().__init__(name, help=summary_of(docstring), rich_help_panel=panel)
        self.examples = examples_of(docstring)
        _translate(self)
        self.function = function
        self._messages: dict[str, tuple[str, str]] = {}

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters, with `--help`."""
        if self.callback is None:
            reader = typer.Typer(add_completion=False)
            reader.command()(as_command(self.function))
            read = typer.main.get_command(reader)
            self.params, self.callback = read.params, read.callback
            for parameter in self.params:
                self._messages[parameter.name] = message_of(getattr(parameter, "help", None) or "")
                _translate(parameter)
        return super().get_params(ctx)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help."""
        console = Console(highlight=False)
        hidden = sum(map(is_hidden, self.get_params(ctx)))
        if hidden or console.width < _NARROW or language() == JAPANESE:
            _print_introduction(console, self, ctx)
            _print_options(console, self, ctx)
        else:
            super().format_help(ctx, formatter)
        if hidden:
            message = _("{count} more options: {command}")
            console.print(Text(f"\n{message.format(count=hidden, command=f'{ctx.command_path} --help-all')}"))
        _print_examples(console, self.examples)

    def beginning(self, parameter: Any, columns: int) -> str:
        """Return the first sentences of a parameter's help, at least one, that take at most so many columns."""
        message, default = self._messages.get(parameter.name, ("", ""))
        first, *others = re.split(r"(?<=\.)(?= )|(?<=。)", _plain(_(message))) if message else [""]
        for sentence in others:
            if cell_len(first + sentence) > columns:
                break
            first += sentence
        return _(DEFAULT, help=first, value=default) if default else first

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """Complete every option, also those that `--help` leaves out."""
        show_all(self.get_params(ctx))
        return super().shell_complete(ctx, incomplete)


class Group(TyperGroup):
    """A group of commands whose help ends with examples."""

    examples: Sequence[str] = ()

    @classmethod
    def of(cls, group: typer.Typer, commands: Commands) -> "Group":
        """Return a group with commands."""
        made = cast(Group, typer.main.get_command(group))
        for place in (made, *made.params):
            _translate(place)
        for name, (panel, function) in commands.items():
            made.add_command(Command(name, function, panel))
        return made

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help."""
        console = Console(highlight=False)
        if language() == JAPANESE:
            _print_introduction(console, self, ctx)
            _print_options(console, self, ctx)
            _print_commands(console, self)
        else:
            super().format_help(ctx, formatter)
        _print_examples(console, self.examples)


def new_group(name: str, docstring: str, panel: str, commands: Commands) -> Group:
    """Return a group of commands in a panel of the help, which shows its own help if no command is given."""
    group = typer.Typer(name=name, cls=Group, help=summary_of(docstring), add_completion=False)

    @group.callback(invoke_without_command=True)
    def show_help(context: typer.Context) -> None:
        if context.invoked_subcommand is None:
            typer.echo(context.get_help())

    made = Group.of(group, commands)
    made.rich_help_panel, made.examples = _(panel), examples_of(docstring)
    return made


def _print_introduction(console: Console, command: Command | Group, context: Any) -> None:
    """Print how a command is called, and what it does."""
    console.print(Text(command.get_usage(context).replace("Usage:", _("Usage:"), 1), style="bold"))
    console.print()
    _print_paragraphs(console, _plain(command.help or ""), 0)


def _print_options(console: Console, command: Command | Group, context: Any) -> None:
    """Print the arguments and options by panel; with the beginnings of their help texts if some are left out."""
    if help_option := command.get_help_option(context):
        help_option.help = _("Show this message and exit.")
    panels: defaultdict[str, list[Any]] = defaultdict(list)
    parameters = command.get_params(context)
    for parameter in parameters:
        if not is_hidden(parameter):
            panels[_panel(parameter)].append(parameter)
    is_short = any(map(is_hidden, parameters))
    for title in sorted(panels, key=lambda title: title == _("Options")):  # general options last
        console.print(Text(f"\n{title}", style="bold"))
        for parameter in panels[title]:
            name, text = parameter.get_help_record(context) or ("", "")
            console.print(Padding(Text(name, style="cyan"), (0, 0, 0, 2)))
            shown = _with_default(parameter.help or "", text)
            if is_short and isinstance(command, Command):
                shown = command.beginning(parameter, 2 * (console.width - _INDENT)) or shown
            _print_paragraphs(console, shown, _INDENT)


def _print_commands(console: Console, group: Group) -> None:
    panels: defaultdict[str, list[Any]] = defaultdict(list)
    for command in group.commands.values():
        panels[getattr(command, "rich_help_panel", None) or _("Commands")].append(command)
    for title, commands in panels.items():
        console.print(Text(f"\n{title}", style="bold"))
        for command in commands:
            console.print(Padding(Text(command.name or "", style="cyan"), (0, 0, 0, 2)))
            _print_paragraphs(console, _plain(command.help or "").split("\n\n")[0], _INDENT)
    if group.epilog:
        console.print()
        _print_paragraphs(console, _plain(group.epilog), 0)


def _print_paragraphs(console: Console, text: str, indent: int) -> None:
    for line in wrap(text, console.width - indent):
        console.print(Text(" " * indent + line), soft_wrap=True)


def _print_examples(console: Console, lines: Sequence[str]) -> None:
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
            parts.append(_("[default: {value}]", value=part.removeprefix("default: ")))
        elif part:
            parts.append(f"[{part}]")
    return " ".join([_plain(help_text), *parts])


def _plain(text: str) -> str:
    """Return a help text without rich's escapes, its paragraphs as one line each."""
    paragraphs = text.replace(r"\[", "[").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
