"""Read settings in YAML: strings, numbers, booleans, null, lists, and mappings whose keys are strings.

This is a subset of YAML. Aliases are refused, because a few lines of them can expand to more than the memory holds, and
size and nesting are limited. Dates are read as strings, so that they can be the names of files.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from tsugiki.errors import TsugikiError, error_text, unreadable
from tsugiki.language import _, marked

WIDE_COLON = marked("{path} has a full-width colon (：) after a name; write : and a space")
_NAME_WITH_WIDE_COLON = re.compile("^[ \t]*[A-Za-z_]+ *：", re.MULTILINE)
_PROBLEMS = (
    marked("found character '\\t' that cannot start any token"),
    marked("mapping values are not allowed here"),
    marked("could not find expected ':'"),
    marked("found unexpected end of stream"),
    marked("expected <block end>, but found '<block mapping start>'"),
)
"""The messages of PyYAML that are translated."""
_MAX_SIZE = 200_000  # characters; the loader reads about 100,000 per second
_MAX_DEPTH = 50


def read_yaml(path: Path) -> Any:
    """Return the value in a YAML file."""
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_MAX_SIZE + 1)
    except (OSError, ValueError) as error:  # ValueError: another encoding, or a null character in the path
        raise unreadable(path, error) from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, name: str) -> Any:
    """Return the value of a text in YAML; errors name its source, such as a path or a flag."""
    if len(text) > _MAX_SIZE:
        raise TsugikiError(
            "{name} has more than {most:,} characters, which is too long for settings", name=name, most=_MAX_SIZE
        )
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        if _NAME_WITH_WIDE_COLON.search(text):
            raise TsugikiError(WIDE_COLON, path=name) from error
        mark = error.problem_mark or error.context_mark
        where = _("line {line}: ", line=mark.line + 1) if mark else ""
        message = _("{name} is not YAML: {where}{problem}")
        problem = error_text(_(str(error.problem or error.context)))
        raise TsugikiError(message.format(name=name, where=where, problem=problem)) from error
    except (yaml.YAMLError, LookupError, ValueError, OverflowError) as error:  # no number, or no character
        raise TsugikiError("{name} is not YAML: {error}", name=name, error=error_text(error)) from error


class _Loader(yaml.SafeLoader):
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            raise _error(_("aliases (*name) are not supported; repeat the value"), event)
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise _error(_("there are more than {most} levels", most=_MAX_DEPTH), event)
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        for key in mapping:
            if not isinstance(key, str):
                raise _error(_("the name {key} is not a text; put it in quotes", key=error_text(repr(key), 40)), node)
        return mapping

    def text(self, node: yaml.Node) -> str:
        value: str = self.construct_yaml_str(node)
        if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
            raise _error(_("a text contains a null character or an unpaired surrogate"), node)
        return value


for _tag in ("str", "timestamp"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _Loader.text)


def _error(problem: str, at: Any) -> yaml.MarkedYAMLError:
    """Return the error for a node or an event of the loader."""
    return yaml.MarkedYAMLError(problem=problem, problem_mark=at.start_mark)
