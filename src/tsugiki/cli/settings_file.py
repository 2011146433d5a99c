"""The settings of a run as a YAML file with comments: those that are given, and the others with their defaults."""

from collections.abc import Collection, Mapping
from typing import Any

import yaml
from pydantic import BaseModel

from tsugiki.cli.flags import Setting, panel_of, place_of, settings_of
from tsugiki.cli.wrapping import wrap
from tsugiki.language import _

_WIDTH = 90


def settings_text(
    config: type[BaseModel],
    given: Mapping[str, Any],
    exclude: Collection[str] = (),
    only: Collection[str] | None = None,
) -> str:
    """Return the settings in YAML, in groups, with a description above each.

    A setting that is not given is commented out and shows its default; an empty value means that it has none.

    Args:
        config: the class of the settings.
        given: settings, nested as in a YAML file.
        exclude: names of fields that are left out.
        only: full names, such as `lora.r`, of settings that are listed even if they are not given; None: all.
    """
    lines: list[str] = []
    panel = ""
    listed = [setting for setting in settings_of(config, exclude) if _is_listed(setting, given, only)]
    for setting in sorted(listed, key=place_of):
        section = setting.path[0] if len(setting.path) > 1 else ""
        if panel_of(setting) != panel:
            panel = panel_of(setting)
            lines += ["", f"# --- {_(panel)} ---"]
            lines += ["", f"{section}:"] if section else []
        lines += ["", *_lines(setting, given.get(section, {}) if section else given, "  " if section else "")]
    others = {name: value for name, value in given.items() if name not in {setting.path[0] for setting in listed}}
    return "\n".join([*lines, *(["", _dump(others)] if others else [])]).lstrip("\n") + "\n"


def _is_listed(setting: Setting, given: Mapping[str, Any], only: Collection[str] | None) -> bool:
    return only is None or ".".join(setting.path) in only or _is_given(setting, given)


def _is_given(setting: Setting, given: Mapping[str, Any]) -> bool:
    *sections, name = setting.path
    for section in sections:
        given = given.get(section) or {}
    return name in given


def _lines(setting: Setting, given: Mapping[str, Any], indent: str) -> list[str]:
    """Return the description of a setting as comments, and the setting itself."""
    name = setting.path[-1]
    text = wrap(_(setting.description), _WIDTH)
    value = given.get(name, setting.default)
    mark = "" if name in given or setting.is_required else "# "
    shown = "" if value is None else f" {_inline(value)}"
    return [*(f"{indent}# {line}" for line in text), f"{indent}{mark}{name}:{shown}"]


def _inline(value: Any) -> str:
    """Return a value in YAML, in one line."""
    plain = list(value) if isinstance(value, tuple) else value
    text: str = yaml.safe_dump(plain, default_flow_style=True, allow_unicode=True, width=100_000)
    return text.strip().removesuffix("\n...").strip()


def _dump(values: Mapping[str, Any]) -> str:
    text: str = yaml.safe_dump(dict(values), allow_unicode=True, sort_keys=False, width=100_000)
    return text.strip()
