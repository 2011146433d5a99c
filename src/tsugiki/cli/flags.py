"""Commands for typer from functions: parameters become arguments and options, fields of a config become flags.

A command is a function whose docstring describes its parameters. Names, types, defaults and descriptions of settings
are defined only in their config, and those of the parameters of a public function only there.
"""

import inspect
import json
import re
from collections import abc
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial, wraps
from operator import itemgetter
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, get_args, get_origin

import typer
from typer.models import ParameterInfo

from tsugiki.annotations import Flag, Names
from tsugiki.errors import TsugikiError
from tsugiki.io.formatting import argument_descriptions
from tsugiki.language import _, marked
from tsugiki.report.table import wrap
from tsugiki.training.settings.setting import Setting, settings_of

if TYPE_CHECKING:
    from pydantic import BaseModel

Given: TypeAlias = dict[str, Any]
"""The settings of a config that the user has given, nested as in a YAML file."""

Library: TypeAlias = Annotated[
    Path | None,
    typer.Option(help="The library's folder; if unset $TSUGIKI_ADAPTERS, or else ~/.local/share/tsugiki/adapters."),
]


DEFAULT = marked("{help} (default: {value})")
"""The help of an option that has a default."""
_SIMPLE = (str, int, float, bool)
_WIDTH = 90  # of a file of settings

RUN_CONFIG = "tsugiki.training.settings.config.RunConfig"


@dataclass(frozen=True)
class FlagsOf:
    """Marks a parameter of type `Given`: it becomes a flag for each setting of a config, or parameter of a function.

    Of a config, the settings that the user has given are received; of a function, the values of all parameters.
    """

    source: str
    """The name of the config's class or of the function, with its module, which is imported when flags are needed."""
    without: tuple[str, ...] = ()
    """Names of fields or parameters that have no flag."""
    only: tuple[str, ...] | None = None
    """Names of those that have a flag; None: all others."""

    def flags(self) -> "Flags":
        """Return the flags, in the order of the help."""
        source: Any = resolve_name(self.source)
        if hasattr(source, "model_fields"):
            skipped = {name for name in source.model_fields if not self._has_flag(name)}
            table = {setting.parameter: setting for setting in settings_of(source, skipped)}
            return [_flag(setting) for setting in table.values()], partial(_parse, table)
        descriptions = argument_descriptions(inspect.getdoc(source) or "")
        taken = [one for one in inspect.signature(source).parameters.values() if self._has_flag(one.name)]
        return [_option(one, descriptions) for one in taken], partial(_arguments, taken)

    def _has_flag(self, name: str) -> bool:
        return name not in self.without and (self.only is None or name in self.only)


Flags: TypeAlias = tuple[Sequence[inspect.Parameter], Callable[[Given], Any]]
"""Parameters of a command, and what takes its argument for a function from their values."""


def as_command(function: Callable[..., None]) -> Callable[..., None]:
    """Return a command for typer from a function, whose docstring describes its parameters under `Args:`.

    Parameters before `*` become arguments, the others options. One that is marked by `FlagsOf` becomes several.
    """
    descriptions = argument_descriptions(inspect.getdoc(function) or "")
    shown: list[inspect.Parameter] = []
    build: dict[str, Callable[[Given], Any]] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        marks = [mark for mark in getattr(parameter.annotation, "__metadata__", ()) if isinstance(mark, FlagsOf)]
        if marks:
            flags, build[name] = marks[0].flags()
            shown += flags
        else:
            shown.append(_described(parameter, descriptions))
            build[name] = itemgetter(name)
    if any(is_hidden(get_args(parameter.annotation)[1]) for parameter in shown):
        shown.append(inspect.Parameter("help_all", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=_HelpAll))

    @wraps(function)
    def call(**values: Any) -> None:
        function(**{name: take(values) for name, take in build.items()})

    vars(call)["__signature__"] = inspect.Signature(shown)
    del vars(call)["__wrapped__"]
    call.__annotations__ = {}
    call.__doc__ = summary_of(inspect.getdoc(function) or "")
    return call


def is_hidden(parameter: object) -> bool:
    """Return whether `--help` leaves a parameter out, which `--help-all` shows."""
    return bool(getattr(parameter, "hidden", False))


def show_all(parameters: Iterable[Any]) -> None:
    """Leave no parameter out of the help and of completion."""
    for parameter in parameters:
        parameter.hidden = False


def _print_help_all(context: typer.Context, value: bool) -> None:
    if value:
        show_all(context.command.params)
        typer.echo(context.get_help())
        raise typer.Exit


_HelpAll: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--help-all", is_eager=True, expose_value=False, callback=_print_help_all, help="Show all options and exit."
    ),
]


def summary_of(docstring: str) -> str:
    """Return a docstring without its sections."""
    return re.split(r"\n\n(?:Args|Examples):\n", docstring)[0]


def examples_of(docstring: str) -> list[str]:
    """Return the lines of the section `Examples:` of a docstring, which is the last one."""
    return [line.strip() for line in docstring.partition("\n\nExamples:\n")[2].splitlines()]


def _described(parameter: inspect.Parameter, descriptions: Mapping[str, str]) -> inspect.Parameter:
    """Return a parameter for typer with its description.

    A name can end with an underscore, which is not a part of the flag. An option that is off by default has no `--no-`.
    """
    kind, mark = _kind_and_mark(parameter)
    is_option = parameter.kind is inspect.Parameter.KEYWORD_ONLY
    info: ParameterInfo = copy(mark) if mark else typer.Option() if is_option else typer.Argument()
    if info.help is None:
        info.help = descriptions[parameter.name]
    if is_option and info.default is ... and (parameter.name.endswith("_") or parameter.default is False):
        info.param_decls = (f"--{parameter.name.rstrip('_').replace('_', '-')}",)
    return parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[kind, info])


def _kind_and_mark(parameter: inspect.Parameter) -> tuple[Any, Any]:
    """Return the type of a parameter, and what its annotation adds to it; None if nothing."""
    is_marked = get_origin(parameter.annotation) is Annotated
    return get_args(parameter.annotation)[:2] if is_marked else (parameter.annotation, None)


def _option(parameter: inspect.Parameter, descriptions: Mapping[str, str]) -> inspect.Parameter:
    """Return an option of a command from a parameter of a function, which the function need not have a default for."""
    kind, mark = _kind_and_mark(parameter)
    mark = mark or Flag()
    help_ = re.sub(r"`(\w+)`", lambda match: f"--{match[1].replace('_', '-')}", descriptions[parameter.name])
    default = None if parameter.default is inspect.Parameter.empty else parameter.default
    if is_several := _is_several(parameter):
        kind, default, help_ = list[str] | None, None, f"{help_} Can be repeated."
    option = typer.Option(help=help_[:1].upper() + help_[1:], min=mark.least, max=mark.most, rich_help_panel=mark.group)
    shown = parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option])
    return shown if is_several else _described(shown, {})


def _is_several(parameter: inspect.Parameter) -> bool:
    """Return whether a parameter takes several texts, or names with texts, so that its flag can be repeated."""
    return parameter.annotation == Names or get_origin(parameter.annotation) is abc.Mapping


def _arguments(parameters: Sequence[inspect.Parameter], values: Given) -> Given:
    """Return the arguments for a function from the values of its flags."""
    given = {one.name: values[one.name] for one in parameters}
    for one in parameters:
        if _is_several(one):
            given[one.name] = given[one.name] or []
        if get_origin(one.annotation) is abc.Mapping:
            given[one.name] = _columns(given[one.name])
    return given


def _columns(texts: Sequence[str]) -> dict[str, str]:
    from tsugiki.data.read.schemas import parse_columns

    try:
        return parse_columns(texts)
    except ValueError as error:
        raise TsugikiError(str(error)) from error


def _flag(setting: Setting) -> inspect.Parameter:
    """Return the parameter of the command; None means that the user has not given the flag."""
    names = [setting.flag, *([setting.about.other_flag] if setting.about.other_flag else [])]
    kind: Any = str
    metavar = None
    if setting.types == (bool,):
        kind, names = bool, [f"{setting.flag}/--no-{setting.flag[2:]}"]
    elif len(setting.types) == 1 and setting.types[0] in _SIMPLE:
        kind = setting.types[0]
    elif _is_repeated(setting):
        kind = list[str]
    elif get_origin(setting.types[0]) is Literal:
        metavar = "|".join(map(str, get_args(setting.types[0])))
    option = typer.Option(
        *names,
        help=_help(setting),
        show_default=False,
        metavar=metavar,
        rich_help_panel=setting.group or None,
        hidden=not setting.about.first,
    )
    return inspect.Parameter(
        setting.parameter, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


def _help(setting: Setting) -> str:
    """Return the help text of a setting: its description and its default."""
    shown = setting.default
    if shown is None or shown is False or shown == () or shown == {}:
        return _escape(setting.description)
    return _escape(DEFAULT.format(help=setting.description, value=shown))


def _escape(text: str) -> str:
    """Escape brackets, which rich would take for markup."""
    return text.replace("[", r"\[")


def _is_repeated(setting: Setting) -> bool:
    """Return whether the flag can be given several times."""
    return get_origin(setting.types[0]) in (tuple, dict)


def _parse(table: Mapping[str, Setting], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the given settings, nested as in a YAML file."""
    settings: dict[str, Any] = {}
    for parameter, setting in table.items():
        if (value := values[parameter]) not in (None, []):
            setting.put(settings, _value(setting, value))
    return settings


def _value(setting: Setting, value: Any) -> Any:
    """Return the value of a flag that typer has read as text because the setting can have several types."""
    if not isinstance(value, str) or setting.types == (str,) or get_origin(setting.types[0]) is Literal:
        return value
    if any(_is_names(kind) for kind in setting.types):
        return value if value == "all-linear" else [name.strip() for name in value.split(",")]
    return yaml_value(setting.flag, value)


def _is_names(kind: Any) -> bool:
    return get_args(kind) == (str,)


def yaml_value(flag: str, text: str) -> Any:
    """Return the value that a flag's text has in YAML."""
    from tsugiki.io.yaml import parse_yaml

    return parse_yaml(text, f"{flag} {text[:100]!r}")


def words_of(config: "type[BaseModel]", given: Mapping[str, Any]) -> list[str]:
    """Return the flags and values, as separate words, for settings of a class that are not its defaults.

    They are nested as in a YAML file.
    """
    words: list[str] = []
    for setting in sorted(settings_of(config, ["method_config"]), key=lambda setting: not setting.is_required):
        value = setting.find(given)
        if value == setting.default:
            continue
        if isinstance(value, bool) and setting.types == (bool,):
            words.append(setting.flag if value else f"--no-{setting.flag[2:]}")
        elif _is_repeated(setting) and isinstance(value, Mapping):
            words += [word for key, part in value.items() for word in (setting.flag, f"{key}={part}")]
        elif _is_repeated(setting) or setting.path == ("data",):
            words += [
                word for item in ([value] if isinstance(value, str) else value or []) for word in (setting.flag, item)
            ]
        elif value is not None:
            words += [setting.flag, _word(setting, value)]
    for name, value in (given.get("method_config") or {}).items():
        words += ["--set", f"{name}={json.dumps(value, ensure_ascii=False)}"]
    return words


def _word(setting: Setting, value: Any) -> str:
    if isinstance(value, list | tuple) and any(_is_names(kind) for kind in setting.types):
        return ",".join(map(str, value))
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | tuple | dict) else str(value)


def settings_text(config: "type[BaseModel]", given: Mapping[str, Any], only: Collection[str] | None = None) -> str:
    """Return the settings in YAML, in groups, with a description above each.

    A setting that is not given is commented out and shows its default; an empty value means that it has none. `given`
    has settings, nested as in a YAML file; `only` the full names, such as `lora.r`, of settings that are listed even if
    they are not given; None: all.
    """
    lines: list[str] = []
    group = ""
    listed = [
        setting
        for setting in settings_of(config)
        if only is None or ".".join(setting.path) in only or setting.find(given) is not None
    ]
    for setting in listed:
        section = setting.path[0] if len(setting.path) > 1 else ""
        if setting.group != group:
            group = setting.group
            lines += ["", f"# --- {_(group)} ---"]
            lines += ["", f"{section}:"] if section else []
        lines += ["", *_commented(setting, given.get(section, {}) if section else given, "  " if section else "")]
    others = {name: value for name, value in given.items() if name not in {setting.path[0] for setting in listed}}
    return "\n".join([*lines, *(["", _dump(others)] if others else [])]).lstrip("\n") + "\n"


def _commented(setting: Setting, given: Mapping[str, Any], indent: str) -> list[str]:
    """Return the description of a setting as comments, and the setting itself."""
    name = setting.path[-1]
    text = wrap(_(_escape(setting.description)).replace(r"\[", "["), _WIDTH)
    value = given.get(name, setting.default)
    mark = "" if name in given or setting.is_required else "# "
    shown = "" if value is None else f" {_inline(value)}"
    return [*(f"{indent}# {line}" for line in text), f"{indent}{mark}{name}:{shown}"]


def _inline(value: Any) -> str:
    """Return a value in YAML, in one line."""
    import yaml

    plain = list(value) if isinstance(value, tuple) else value
    text: str = yaml.safe_dump(plain, default_flow_style=True, allow_unicode=True, width=100_000)
    return text.strip().removesuffix("\n...").strip()


def _dump(values: Mapping[str, Any]) -> str:
    import yaml

    text: str = yaml.safe_dump(dict(values), allow_unicode=True, sort_keys=False, width=100_000)
    return text.strip()
