"""Settings of a run or a workflow from a YAML file, from flags, or both, and messages for invalid settings."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from tsugiki.errors import TsugikiError, error_text
from tsugiki.io import yaml
from tsugiki.io.file_names import DATA_SUFFIXES
from tsugiki.io.validation import LONGEST_MESSAGE, OTHER_NAMES, describe_problems
from tsugiki.language import _, listed, marked
from tsugiki.lora.config import LoraConfig
from tsugiki.training.settings.config import RunConfig

SEVERAL_TEXTS = marked("Give several texts by repeating --data, or as a pattern in quotes: --data 'texts/*.txt'")

Settings = TypeVar("Settings", bound=BaseModel)


def load_config(
    path: Path | None,
    overrides: dict[str, Any],
    method_settings: Mapping[str, Any] = {},
    preset: Mapping[str, Any] = {},
) -> RunConfig:
    """Read the settings of a run from a YAML file and from overrides; the arguments are those of `merged_settings`."""
    return validated(RunConfig, merged_settings(path, overrides, method_settings, preset), path)


def merged_settings(
    path: Path | None,
    overrides: dict[str, Any],
    method_settings: Mapping[str, Any] = {},
    preset: Mapping[str, Any] = {},
) -> dict[str, Any]:
    """Return the settings in a YAML file, replaced by overrides, which are nested alike. They are not validated.

    `method_settings` belong to the section `lora` or `method_config`, depending on the method. `preset` has other
    defaults, such as `CHAPTER`.
    """
    from tsugiki.methods.table import METHODS

    given = read_yaml(path) if path is not None else {}
    if given.get("reward") and "reward" not in overrides:
        from tsugiki.preference.rewards import refuse_programs

        refuse_programs(given["reward"], path)
    settings = {**{name: value for name, value in preset.items() if name != "lora"}, **given}
    method = METHODS.get(str(overrides.get("method", settings.get("method", "lora"))))
    own = "lora" if method is not None and method.config is LoraConfig else "method_config"
    overrides = {**overrides, own: {**overrides.get(own, {}), **method_settings}}
    for section in ("lora", "method_config"):
        inner = settings.pop(section, None) or {}
        if not isinstance(inner, dict):
            raise TsugikiError(
                "{path}: {section} is {inner}; it must contain settings, such as r: 8 in lora",
                path=path,
                section=section,
                inner=error_text(repr(inner), 100),
            )
        inner = {**(preset.get(section, {}) if section == own else {}), **inner, **overrides.pop(section, {})}
        if method is not None and section == own:
            method.check_fixed_settings(inner)
        settings |= {section: inner} if inner else {}
    return {**settings, **overrides}


def load_settings(kind: type[Settings], path: Path, overrides: Mapping[str, Any]) -> Settings:
    """Read the settings of a workflow, a config of the class `kind`, from a YAML file; `overrides` take precedence."""
    return validated(kind, {**read_yaml(path), **overrides}, path)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read the settings in a YAML file, without validating them."""
    if path.suffix.lower() in DATA_SUFFIXES and path.suffix.lower() != ".json":  # JSON is YAML as well
        raise TsugikiError(
            "{path} is no file of settings: --data {path} reads it. {advice}", path=path, advice=_(SEVERAL_TEXTS)
        )
    loaded = yaml.read_yaml(path)
    if not isinstance(loaded, dict):
        message = _("{path} holds no settings; it must contain at least model, data and out")
        if isinstance(loaded, str) and "：" in loaded:
            message = _(yaml.WIDE_COLON)
        raise TsugikiError(message.format(path=path))
    if "model" not in loaded and any(OTHER_NAMES.get(name) == "model" for name in loaded):
        raise TsugikiError(
            "{path} has the names of another program; here they are: {names}; tsugiki new writes such a file",
            path=path,
            names=listed(_names_here(loaded)),
        )
    return loaded


def _names_here(loaded: Iterable[str]) -> Iterator[str]:
    """Yield the settings of another program with their names here."""
    of_lora = {field.name for field in fields(LoraConfig)}
    for name in loaded:
        here = OTHER_NAMES.get(name, name)
        here = f"lora.{here}" if here in of_lora else here
        if here != name:
            yield f"{name} → {here}"


def validated(kind: type[Settings], settings: dict[str, Any], path: Path | None) -> Settings:
    """Build a config of the class `kind` from settings; an error names `path`, the file that they are from."""
    try:
        return kind.model_validate(settings)
    except ValidationError as error:
        raise TsugikiError(f"{path or _('settings')}: {describe_problems(error, kind.model_fields)}") from error
    except TsugikiError as error:  # from the config of a method
        raise TsugikiError(f"{path or _('settings')}: {error_text(error, LONGEST_MESSAGE)}") from error
