"""Checks the settings of adapters: their names are known, and their values have the types of the fields."""

from collections.abc import Collection
from dataclasses import fields
from functools import cache, wraps
from inspect import signature
from typing import Any, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from tsugiki.errors import TsugikiError, error_text
from tsugiki.io.validation import describe_problems, near_setting
from tsugiki.language import _

T = TypeVar("T")


def with_known_settings(config: type[T]) -> type[T]:
    """Let a config class answer an unknown setting by a TsugikiError instead of a TypeError."""
    initialise, known = config.__init__, signature(config).parameters

    @wraps(initialise)
    def checked(self: Any, *args: object, **settings: object) -> None:
        refuse_unknown_settings(settings, known)
        initialise(self, *args, **settings)

    config.__init__ = checked  # type: ignore[method-assign]
    return config


def refuse_unknown_settings(settings: Collection[str], known: Collection[str]) -> None:
    """Raise a TsugikiError for the first setting that is not known, with the nearest known one or all of them."""
    unknown = [name for name in settings if name not in known]
    if not unknown:
        return
    if near := near_setting(unknown[0], known):
        raise TsugikiError(f"{error_text(unknown[0], 100)}: {_('unknown setting')}{near}")
    message = _("{unknown}: no such setting; this method has: {known}")
    names = ", ".join(sorted(known)) or _("nothing")
    raise TsugikiError(message.format(unknown=error_text(", ".join(unknown), 100), known=names))


def check_types(config: Any) -> None:
    """Check the fields of a dataclass against their annotations, such as `Annotated[int, Ge(1)]`; called first.

    The values stay as they are: 32 is not converted to 32.0, so that a file gets what the user wrote.
    """
    kind: Any = type(config)
    values = {field.name: getattr(config, field.name) for field in fields(config)}
    try:
        _model_of(kind).model_validate(values)
    except ValidationError as error:
        raise TsugikiError(describe_problems(error, values)) from error


@cache
def _model_of(kind: Any) -> type[BaseModel]:
    """Return a model of pydantic with the fields of a dataclass, in which true is no number and "8" is none."""
    annotations = get_type_hints(kind, include_extras=True)
    required: Any = {field.name: (annotations[field.name], ...) for field in fields(kind)}
    return create_model(kind.__name__, __config__=ConfigDict(strict=True), **required)
