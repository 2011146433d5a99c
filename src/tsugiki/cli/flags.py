"""Flags of a command, made from the fields of its config.

Every field becomes a flag with the name, the type, the default and the description of the field, which are defined only
in the config. The fields of a nested dataclass, such as those of `RunConfig.lora`, become flags as well.
"""

import dataclasses
import inspect
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import wraps
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer
from pydantic import BaseModel

from tsugiki.cli.help import DEFAULT
from tsugiki.io.yaml import parse_yaml
from tsugiki.training.config import argument_descriptions

_SIMPLE = (str, int, float, bool)
_PANELS = {
    "Data": (
        "model", "trust_remote_code", "data", "columns", "drop_duplicates", "held_out", "validation",
        "allow_overlap", "mix", "assistant_turns", "chat_template", "system", "block_size", "add_tokens",
    ),
    "Method": ("method", "start_from", "base_dtype", "compute_dtype", "base_dropout", "loraplus_lr_ratio"),
    "Schedule": (
        "minutes", "epochs", "max_steps", "batch_size", "learning_rate", "lr_scheduler_type", "warmup_ratio",
        "decay_ratio", "optimizer", "adam_beta2", "weight_decay", "max_grad_norm", "seed", "keep", "patience",
    ),
    "Evaluation": (
        "prompts", "sample_steps", "sample_tokens", "eval_steps", "held_out_characters", "retention_data", "report_to",
    ),
    "Output": ("out", "save_steps", "save_dtype"),
    "Machine": ("device", "micro_batch_size", "recompute", "shard"),
}  # fmt: skip
"""Group in the help -> settings, in the order in which they are listed."""
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


def settings_of(config: type[BaseModel], exclude: Collection[str] = ()) -> list[Setting]:
    """Return the settings of a config class: the required ones first, otherwise in the order of the fields.

    Args:
        config: the class; its fields have descriptions, or override fields that have them.
        exclude: names of fields that have no flag.
    """
    settings = []
    fields = {name: field for name, field in config.model_fields.items() if name not in exclude}
    for name, field in sorted(fields.items(), key=lambda item: not item[1].is_required()):
        types = _types(field.annotation)
        if dataclasses.is_dataclass(types[0]):
            settings += _nested(name, types[0], field.default)
        else:
            default = None if field.is_required() else field.get_default(call_default_factory=True)
            settings.append(Setting((name,), types, default, _description(config, name), field.is_required()))
    return settings


def with_flags(
    config: type[BaseModel], exclude: Collection[str] = (), only: Collection[str] | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate a command: its parameter `settings` becomes flags for the fields of a config.

    The command is called with `settings` as a dictionary of the settings that the user has given, nested as in a YAML
    file.

    Args:
        config: the class of the config.
        exclude: names of fields that have no flag.
        only: names of the fields that have a flag; None: all others.
    """
    skipped = {*exclude, *(() if only is None else set(config.model_fields) - set(only))}
    listed = sorted(settings_of(config, skipped), key=place_of)
    table = {setting.parameter: setting for setting in listed}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command)

        @wraps(command)
        def call(**values: Any) -> None:
            given = {name: values.pop(name) for name in table}
            command(settings=_parse(table, given), **values)

        parameters = []
        for parameter in signature.parameters.values():
            if parameter.name == "settings":
                parameters += [_parameter(setting) for setting in table.values()]
            else:
                parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
        vars(call)["__signature__"] = signature.replace(parameters=parameters)
        del vars(call)["__wrapped__"]
        call.__annotations__ = {}
        return call

    return decorate


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


def _description(config: type[BaseModel], name: str) -> str:
    """Return the description of a field, which an overridden field inherits."""
    for base in config.__mro__:
        field = getattr(base, "model_fields", {}).get(name)
        if field is not None and field.description:
            return " ".join(field.description.split())
    raise KeyError(f"{config.__name__}.{name} has no description")


def _types(annotation: Any) -> tuple[Any, ...]:
    """Return the types in an annotation, without None and metadata."""
    if get_origin(annotation) is Annotated:
        return _types(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return tuple(kind for part in get_args(annotation) for kind in _types(part) if kind is not NoneType)
    return (annotation,)


def _parameter(setting: Setting) -> inspect.Parameter:
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
        *names, help=_help(setting), show_default=False, metavar=metavar, rich_help_panel=panel_of(setting)
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
    return next((panel for panel, names in _PANELS.items() if setting.path[0] in names), "Other settings")


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
    return get_origin(setting.types[0]) is tuple


def _parse(table: Mapping[str, Setting], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the given settings, nested as in a YAML file."""
    settings: dict[str, Any] = {}
    for parameter, value in values.items():
        if value is None or value == []:
            continue
        *sections, name = table[parameter].path
        inner = settings
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[name] = _value(table[parameter], value)
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
    """Return the value that a flag's text has in YAML.

    Raises:
        TsugikiError: the text is not YAML.
    """
    return parse_yaml(text, f"{flag} {text[:100]!r}")


def words_of(config: type[BaseModel], given: Mapping[str, Any]) -> list[str]:
    """Return the flags and values, as separate words, for settings.

    Args:
        config: the class of the settings.
        given: settings, nested as in a YAML file; defaults are left out.
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
