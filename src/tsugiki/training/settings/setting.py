"""What is said of a setting, and the list of settings from which flags, files, the page and guides are made.

The text under a field of a config is its description. This module is imported for the help of commands.
"""

import inspect
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, Union, get_args, get_origin, get_type_hints

from tsugiki.io.formatting import argument_descriptions

if TYPE_CHECKING:
    from pydantic import BaseModel

DataKind: TypeAlias = Literal["texts", "questions", "conversations", "pairs"]
"""What a run can learn from. Questions are prompts with completions, and pairs are of a better and a worse answer."""
DATA_KINDS: tuple[DataKind, ...] = get_args(DataKind)


@dataclass(frozen=True)
class About:
    """Says of a setting, in its annotation, what its type, its default, its limits and its description do not say."""

    first: bool = False
    """Whether `--help` lists it; `--help-all` lists the others, too."""
    data: tuple[DataKind, ...] = DATA_KINDS
    """The kinds of data that it belongs to."""
    page: str = ""
    """Its label on the page of the server, a message; the page offers no setting without one, and the server refuses it
    there: a page must not open files or run code of the server. Of a setting that can be a number or a text, only the
    number is offered, and of one that can be a text, `choices`."""
    choices: Mapping[str, str] = field(default_factory=dict)
    """Values that the page offers of a text, with their messages; of a setting with names as values, the names have
    their messages here. Of a setting without choices that is a text, the page offers any text."""
    simple: bool = False
    """Whether the page shows it at once, and not among the folded ones."""
    page_default: Any = None
    """Its value on the page where a reader chooses none; None: its default."""
    most: float | None = None
    """The largest value on the page, where a larger one could take all memory of the server."""
    other_flag: str | None = None
    parts: Mapping[str, "About"] = field(default_factory=dict)
    """What is said of the settings in a section."""


@dataclass(frozen=True)
class Setting:
    """A setting of a config."""

    path: tuple[str, ...]
    """The names that lead to it in the config, such as ("lora", "r")."""
    types: tuple[Any, ...]
    """The types that it can have, without None."""
    default: Any
    description: str
    group: str
    """Its title in the help and in files; empty: none."""
    about: About = About()
    is_required: bool = False

    @property
    def flag(self) -> str:
        """The flag, such as `--lora-alpha`."""
        return f"--{self.path[-1].replace('_', '-')}"

    @property
    def parameter(self) -> str:
        """The name of the command's parameter."""
        return "__".join(self.path)

    def find(self, given: Any) -> Any:
        """Return its value in settings that are nested as in a YAML file; None if they do not have it."""
        for name in self.path:
            given = given.get(name) if isinstance(given, Mapping) else None
        return given

    def put(self, given: dict[str, Any], value: Any) -> None:
        """Set its value in settings that are nested as in a YAML file."""
        *sections, name = self.path
        for section in sections:
            given = given.setdefault(section, {})
        given[name] = value


def settings_of(config: "type[BaseModel]", exclude: Collection[str] = ()) -> list[Setting]:
    """Return the settings of a config class, in the order of its fields, without those in `exclude`.

    A field that is a dataclass is a section, whose settings are listed instead.
    """
    settings = []
    for name, of in config.model_fields.items():
        if name in exclude:
            continue
        types = types_in(of.annotation)
        about = next((one for one in of.metadata if isinstance(one, About)), About())
        if is_dataclass(types[0]):
            settings += _nested(name, types[0], of.default, about)
        else:
            origin = next(base for base in reversed(config.__mro__) if name in vars(base).get("__annotations__", {}))
            default = None if of.is_required() else of.get_default(call_default_factory=True)
            description, group = " ".join((of.description or "").split()), getattr(origin, "group", "")
            settings.append(Setting((name,), types, default, description, group, about, of.is_required()))
    return settings


def _nested(section: str, config: Any, defaults: Any, about: About) -> list[Setting]:
    """Return the settings of a dataclass that is the field `section` of a config."""
    hints, descriptions = get_type_hints(config), argument_descriptions(inspect.getdoc(config) or "")
    return [
        Setting(
            (section, one.name),
            types_in(hints[one.name]),
            getattr(defaults, one.name),
            descriptions[one.name][:1].upper() + descriptions[one.name][1:],
            f"Settings of {section}",
            about.parts.get(one.name, About()),
        )
        for one in fields(config)
    ]


def types_in(annotation: Any) -> tuple[Any, ...]:
    """Return the types in an annotation, without None and metadata."""
    if get_origin(annotation) is Annotated:
        return types_in(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return tuple(kind for part in get_args(annotation) for kind in types_in(part) if kind is not NoneType)
    return (annotation,)
