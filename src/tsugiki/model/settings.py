"""Checks the settings of adapters: the values in a config have the types of its fields."""

from dataclasses import fields
from functools import cache
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from tsugiki.errors import TsugikiError
from tsugiki.io.validation import describe_problems


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
