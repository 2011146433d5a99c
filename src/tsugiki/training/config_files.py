"""Settings of a run or a workflow from a YAML file, from flags, or both, and messages for invalid settings."""

import re
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from tsugiki.errors import TsugikiError, error_text
from tsugiki.io import yaml
from tsugiki.io.file_names import DATA_SUFFIXES
from tsugiki.io.validation import problem_text
from tsugiki.language import _, marked
from tsugiki.lora.config import LoraConfig
from tsugiki.training.config import RunConfig

SEVERAL_TEXTS = marked("Give several texts by repeating --data, or as a pattern in quotes: --data 'texts/*.txt'")
_MAX_PROBLEMS, _MAX_LENGTH = 5, 1500  # problems that an error lists, and characters of its message
_UNION = re.compile(r"function-|constrained-|literal\[")
"""Parts of an error's location that name a type and not a field; pydantic adds them for settings of several types."""
_NOTHING: Mapping[str, Any] = MappingProxyType({})

Settings = TypeVar("Settings", bound=BaseModel)


def load_config(
    path: Path | None,
    overrides: dict[str, Any],
    method_settings: Mapping[str, Any] = _NOTHING,
    preset: Mapping[str, Any] = _NOTHING,
) -> RunConfig:
    """Read the settings of a run from a YAML file and from overrides.

    The arguments are those of `merged_settings`.

    Raises:
        TsugikiError: the file cannot be read, or a setting is unknown, missing or invalid.
    """
    return validated(RunConfig, merged_settings(path, overrides, method_settings, preset), path)


def merged_settings(
    path: Path | None,
    overrides: dict[str, Any],
    method_settings: Mapping[str, Any] = _NOTHING,
    preset: Mapping[str, Any] = _NOTHING,
) -> dict[str, Any]:
    """Return the settings in a YAML file, replaced by overrides. They are not validated.

    Args:
        path: the file; None: only the overrides.
        overrides: settings that take precedence, nested as in the file.
        method_settings: settings of the method, which belong to the section `lora` or `method_config` depending on it.
        preset: other defaults, such as `CHAPTER`.

    Raises:
        TsugikiError: the file cannot be read, a section holds no settings, or a setting is fixed by the method.
    """
    from tsugiki.methods.table import METHODS

    given = read_yaml(path) if path is not None else {}
    settings = {**{name: value for name, value in preset.items() if name != "lora"}, **given}
    method = METHODS.get(str(overrides.get("method", settings.get("method", "lora"))))
    own = "lora" if method is not None and method.config is LoraConfig else "method_config"
    overrides = {**overrides, own: {**overrides.get(own, {}), **method_settings}}
    for section in ("lora", "method_config"):
        inner = settings.pop(section, None) or {}
        if not isinstance(inner, dict):
            raise TsugikiError(
                _("{path}: {section} is {inner}; it must contain settings, such as r: 8 in lora").format(
                    path=path, section=section, inner=error_text(repr(inner), 100)
                )
            )
        inner = {**(preset.get(section, {}) if section == own else {}), **inner, **overrides.pop(section, {})}
        if method is not None and section == own:
            method.check_fixed_settings(inner)
        settings |= {section: inner} if inner else {}
    return {**settings, **overrides}


def read_yaml(path: Path) -> dict[str, Any]:
    """Read the settings in a YAML file, without validating them.

    Raises:
        TsugikiError: the file cannot be read, is not YAML, or contains no settings.
    """
    if path.suffix.lower() in DATA_SUFFIXES and path.suffix.lower() != ".json":  # JSON is YAML as well
        raise TsugikiError(_("{path} is no file of settings. {advice}").format(path=path, advice=_(SEVERAL_TEXTS)))
    loaded = yaml.read_yaml(path)
    if not isinstance(loaded, dict):
        raise TsugikiError(
            _("{path} holds no settings; it must contain at least model, data and out").format(path=path)
        )
    return loaded


def validated(kind: type[Settings], settings: dict[str, Any], path: Path | None) -> Settings:
    """Build a config from settings.

    Args:
        kind: the class of the config.
        settings: the settings.
        path: the file that they are from, for the error; None: no file.

    Raises:
        TsugikiError: a setting is unknown, missing or invalid.
    """
    try:
        return kind.model_validate(settings)
    except ValidationError as error:
        raise TsugikiError(f"{path or _('settings')}: {describe_problems(error, kind.model_fields)}") from error
    except TsugikiError as error:  # from the config of a method
        raise TsugikiError(f"{path or _('settings')}: {error_text(error, _MAX_LENGTH)}") from error


def describe_problems(error: ValidationError, known_settings: Collection[str]) -> str:
    """Return the first problems of a validation in one line, each with the name of its field.

    Args:
        error: pydantic's error.
        known_settings: the names that an unknown setting is compared with.
    """
    problems = []
    for problem in error.errors():
        if problem["type"] == "literal_error" and any(_UNION.match(str(part)) for part in problem["loc"]):
            continue  # of a setting that is a number or `auto`; the problem of the number is listed
        where = error_text(".".join(str(part) for part in problem["loc"] if not _UNION.match(str(part))), 100)
        has_value = where and problem["type"] not in ("missing", "extra_forbidden")
        message = problem_text(problem)
        message = message[:1].lower() + message[1:] if where else message
        if problem["type"] == "extra_forbidden" and (near := get_close_matches(where, known_settings, n=1)):
            message += _("; did you mean {name!r}?").format(name=near[0])
        if has_value:
            message += _(" (got {value})").format(value=error_text(repr(problem["input"]), 100))
        problems.append(f"{where}: {message}" if where else message)
    left = len(problems) - _MAX_PROBLEMS
    more = [_("and {count:,} more problems").format(count=left)] if left > 0 else []
    return error_text("; ".join(problems[:_MAX_PROBLEMS] + more), _MAX_LENGTH)
