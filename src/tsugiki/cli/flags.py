"""Commands for typer from functions: parameters become arguments and options, fields of a config become flags.

A command is a function whose docstring describes its parameters. Names, types, defaults and descriptions of the
settings of a run are defined only in its config, and those of options that several commands have in one dataclass.
"""

import dataclasses
import inspect
import json
from collections.abc import Callable, Collection, Iterable, Mapping
from copy import copy
from dataclasses import dataclass
from functools import partial, wraps
from operator import itemgetter
from pathlib import Path
from pkgutil import resolve_name
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, Union, get_args, get_origin, get_type_hints

import typer
from typer.models import ParameterInfo

from tsugiki.dtypes import LoadDtype
from tsugiki.io.formatting import argument_descriptions
from tsugiki.language import _, marked
from tsugiki.report.table import wrap

if TYPE_CHECKING:
    from pydantic import BaseModel

Given: TypeAlias = dict[str, Any]
"""The settings of a config that the user has given, nested as in a YAML file."""

Library: TypeAlias = Annotated[
    Path | None,
    typer.Option(help="The library's folder; if unset $TSUGIKI_ADAPTERS, or else ~/.local/share/tsugiki/adapters."),
]


@dataclass(frozen=True)
class Loading:
    """Options of the commands that load a model.

    Args:
        dtype: Dtype of the base's weights. Default: int8 or nf4 if the adapter was trained on such a base, otherwise
            fp32.
        allow_base_mismatch: Load an adapter that was trained on another base.
        trust_remote_code: Run Python code that the model brings, with all your rights.
    """

    dtype: LoadDtype | None = None
    allow_base_mismatch: bool = False
    trust_remote_code: bool = False


DEFAULT = marked("{help} (default: {value})")
"""The help of an option that has a default."""
_SIMPLE = (str, int, float, bool)
_PANELS = {
    "Data": (
        "model", "trust_remote_code", "data", "columns", "drop_duplicates", "held_out", "validation",
        "allow_overlap", "mix", "assistant_turns", "chat_template", "system", "block_size", "add_tokens",
    ),
    "Method": (
        "method", "preference", "preference_settings", "start_from", "base_dtype", "compute_dtype", "base_dropout",
        "softmax", "loraplus_lr_ratio",
    ),
    "Schedule": (
        "minutes", "epochs", "max_steps", "batch_size", "learning_rate", "lr_scheduler_type", "warmup_ratio",
        "decay_ratio", "adam_beta2", "weight_decay", "max_grad_norm", "seed", "keep", "patience",
    ),
    "Evaluation": (
        "prompts", "sample_steps", "sample_tokens", "eval_steps", "held_out_characters", "retention_data", "report_to",
    ),
    "Output": ("out", "save_steps", "save_dtype"),
    "Machine": ("device", "micro_batch_size", "recompute", "shard"),
}  # fmt: skip
"""Group in the help -> settings, in the order in which they are listed."""
FIRST_HOUR = frozenset(
    {
        "model", "data", "columns", "held_out", "method", "base_dtype", "lora__r", "lora__lora_alpha",
        "lora__target_modules", "minutes", "epochs", "batch_size", "learning_rate", "prompts", "out",
    }
)  # fmt: skip
"""Settings whose flags `--help` lists, by the names of their parameters; `--help-all` lists the others, too."""
_WIDTH = 90  # of a file of settings
_OTHER_NAMES = {"--start-from": ("--from",)}  # `from` cannot be the name of a field


@dataclass(frozen=True)
class Setting:
    """A setting that has a flag."""

    path: tuple[str, ...]
    """The names that lead to it in the config, such as ("lora", "r")."""
    types: tuple[Any, ...]
    """The types that it can have, without None."""
    default: Any
    description: str
    is_required: bool = False

    @property
    def flag(self) -> str:
        """The flag, such as `--lora-alpha`."""
        return f"--{self.path[-1].replace('_', '-')}"

    @property
    def parameter(self) -> str:
        """The name of the command's parameter."""
        return "__".join(self.path)


RUN_CONFIG = "tsugiki.training.settings.config.RunConfig"


@dataclass(frozen=True)
class FlagsOf:
    """Marks a parameter of type `Given`: it becomes a flag for each setting of a config."""

    config: str
    """The name of the config's class, with its module, which is imported when the flags are needed."""
    without: tuple[str, ...] = ()
    """Names of fields that have no flag."""
    only: tuple[str, ...] | None = None
    """Names of the fields that have a flag; None: all others."""

    def settings(self) -> dict[str, Setting]:
        """Return parameter -> setting, in the order of the help."""
        config: type[BaseModel] = resolve_name(self.config)
        skipped = {*self.without, *(() if self.only is None else set(config.model_fields) - set(self.only))}
        return {setting.parameter: setting for setting in sorted(settings_of(config, skipped), key=place_of)}


def as_command(function: Callable[..., None]) -> Callable[..., None]:
    """Return a command for typer from a function, whose docstring describes its parameters under `Args:`.

    Parameters before `*` become arguments, the others options. A parameter that is marked by `FlagsOf` becomes a flag
    for each setting, and one whose type is a dataclass becomes an option for each field, which the docstring of the
    class describes.
    """
    descriptions = argument_descriptions(inspect.getdoc(function) or "")
    shown: list[inspect.Parameter] = []
    build: dict[str, Callable[[Given], Any]] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        kind: Any = parameter.annotation
        marks = [mark for mark in getattr(kind, "__metadata__", ()) if isinstance(mark, FlagsOf)]
        if marks:
            table = marks[0].settings()
            shown += [_flag(setting) for setting in table.values()]
            build[name] = partial(_parse, table)
        elif isinstance(kind, type) and dataclasses.is_dataclass(kind):
            of_fields = argument_descriptions(inspect.getdoc(kind) or "")
            fields = inspect.signature(kind).parameters.values()
            shown += [_described(field, of_fields, is_option=True) for field in fields]
            build[name] = partial(_instance, kind, [field.name for field in fields])
        else:
            is_option = parameter.kind is inspect.Parameter.KEYWORD_ONLY
            shown.append(_described(parameter, descriptions, is_option=is_option))
            build[name] = itemgetter(name)
    if any(is_hidden(get_args(parameter.annotation)[1]) for parameter in shown):
        shown.append(inspect.Parameter("help_all", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=_HelpAll))

    @wraps(function)
    def call(**values: Any) -> None:
        function(**{name: take(values) for name, take in build.items()})

    vars(call)["__signature__"] = inspect.Signature(shown)
    del vars(call)["__wrapped__"]
    call.__annotations__ = {}
    call.__doc__ = summary_of(function)
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


def summary_of(function: Callable[..., None]) -> str:
    """Return the docstring of a command without the descriptions of its parameters."""
    return (inspect.getdoc(function) or "").partition("\n\nArgs:\n")[0]


def _instance(kind: Callable[..., Any], fields: Collection[str], values: Given) -> Any:
    return kind(**{name: values[name] for name in fields})


def _described(parameter: inspect.Parameter, descriptions: Mapping[str, str], is_option: bool) -> inspect.Parameter:
    """Return a parameter for typer with its description.

    A name can end with an underscore, which is not a part of the flag. An option that is off by default has no `--no-`.
    """
    kind, *marks = (
        get_args(parameter.annotation) if get_origin(parameter.annotation) is Annotated else (parameter.annotation,)
    )
    info: ParameterInfo = copy(marks[0]) if marks else typer.Option() if is_option else typer.Argument()
    if info.help is None:
        info.help = descriptions[parameter.name]
    if is_option and info.default is ... and (parameter.name.endswith("_") or parameter.default is False):
        info.param_decls = (f"--{parameter.name.rstrip('_').replace('_', '-')}",)
    return parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[kind, info])


def settings_of(config: "type[BaseModel]", exclude: Collection[str] = ()) -> list[Setting]:
    """Return the settings of a config class: the required ones first, otherwise in the order of the fields.

    The fields have descriptions; those in `exclude` have no flag.
    """
    settings = []
    fields = {name: field for name, field in config.model_fields.items() if name not in exclude}
    for name, field in sorted(fields.items(), key=lambda item: not item[1].is_required()):
        types = _types(field.annotation)
        if dataclasses.is_dataclass(types[0]):
            settings += _nested(name, types[0], field.default)
        else:
            default = None if field.is_required() else field.get_default(call_default_factory=True)
            description = " ".join((field.description or "").split())
            settings.append(Setting((name,), types, default, description, field.is_required()))
    return settings


def _nested(section: str, config: Any, defaults: Any) -> list[Setting]:
    """Return the settings of a dataclass that is the field `section` of a config."""
    hints, descriptions = get_type_hints(config), argument_descriptions(inspect.getdoc(config) or "")
    return [
        Setting(
            (section, field.name),
            _types(hints[field.name]),
            getattr(defaults, field.name),
            description[:1].upper() + description[1:],
        )
        for field in dataclasses.fields(config)
        for description in [descriptions[field.name]]
    ]


def _types(annotation: Any) -> tuple[Any, ...]:
    """Return the types in an annotation, without None and metadata."""
    if get_origin(annotation) is Annotated:
        return _types(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return tuple(kind for part in get_args(annotation) for kind in _types(part) if kind is not NoneType)
    return (annotation,)


def _flag(setting: Setting) -> inspect.Parameter:
    """Return the parameter of the command; None means that the user has not given the flag."""
    names = [setting.flag, *_OTHER_NAMES.get(setting.flag, ())]
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
        rich_help_panel=panel_of(setting),
        hidden=setting.parameter not in FIRST_HOUR,
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


def panel_of(setting: Setting) -> str:
    """Return the group of a setting in the help."""
    if len(setting.path) > 1:
        return f"Settings of {setting.path[0]}"
    return next((panel for panel, names in _PANELS.items() if setting.path[0] in names), marked("Other settings"))


def place_of(setting: Setting) -> tuple[int, int]:
    """Return the sort key of a setting in the help: the index of its group, and its index in the group."""
    if len(setting.path) > 1:
        return (list(_PANELS).index("Method"), len(_PANELS["Method"]))
    for place, names in enumerate(_PANELS.values()):
        if setting.path[0] in names:
            return (place, names.index(setting.path[0]))
    return (len(_PANELS), 0)


def _is_repeated(setting: Setting) -> bool:
    """Return whether the flag can be given several times."""
    return get_origin(setting.types[0]) in (tuple, dict)


def _parse(table: Mapping[str, Setting], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the given settings, nested as in a YAML file."""
    settings: dict[str, Any] = {}
    for parameter, setting in table.items():
        value = values[parameter]
        if value is None or value == []:
            continue
        *sections, name = setting.path
        inner = settings
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[name] = _value(setting, value)
    return settings


def _value(setting: Setting, value: Any) -> Any:
    """Return the value of a flag that typer has read as text because the setting can have several types."""
    if not isinstance(value, str) or setting.types == (str,) or get_origin(setting.types[0]) is Literal:
        return value
    if any(_is_names(kind) for kind in setting.types):
        return layer_names(value)
    return yaml_value(setting.flag, value)


def _is_names(kind: Any) -> bool:
    return get_args(kind) == (str,)


def layer_names(text: str | None) -> list[str] | str | None:
    """Return the layers that a flag names: a list from names with commas between them, or "all-linear"."""
    return text if text is None or text == "all-linear" else [name.strip() for name in text.split(",")]


def yaml_value(flag: str, text: str) -> Any:
    """Return the value that a flag's text has in YAML."""
    from tsugiki.io.yaml import parse_yaml

    return parse_yaml(text, f"{flag} {text[:100]!r}")


def words_of(config: "type[BaseModel]", given: Mapping[str, Any]) -> list[str]:
    """Return the flags and values, as separate words, for settings of a class that are not its defaults.

    They are nested as in a YAML file.
    """
    words: list[str] = []
    for setting in settings_of(config, exclude=["method_config"]):
        value: Any = given
        for name in setting.path:
            value = value.get(name) if isinstance(value, Mapping) else None
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
    panel = ""
    listed = [
        setting
        for setting in settings_of(config)
        if only is None or ".".join(setting.path) in only or _is_given(setting, given)
    ]
    for setting in sorted(listed, key=place_of):
        section = setting.path[0] if len(setting.path) > 1 else ""
        if panel_of(setting) != panel:
            panel = panel_of(setting)
            lines += ["", f"# --- {_(panel)} ---"]
            lines += ["", f"{section}:"] if section else []
        lines += ["", *_commented(setting, given.get(section, {}) if section else given, "  " if section else "")]
    others = {name: value for name, value in given.items() if name not in {setting.path[0] for setting in listed}}
    return "\n".join([*lines, *(["", _dump(others)] if others else [])]).lstrip("\n") + "\n"


def _is_given(setting: Setting, given: Mapping[str, Any]) -> bool:
    *sections, name = setting.path
    for section in sections:
        given = given.get(section) or {}
    return name in given


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
