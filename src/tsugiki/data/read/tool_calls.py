"""Read the tools of a conversation, and the calls of them, in OpenAI's shape, which chat templates take.

    tools        [{"type": "function", "function": {"name": …, "description": …, "parameters": {a JSON schema}}}]
    tool_calls   [{"id": …, "type": "function", "function": {"name": …, "arguments": {…}}}]

A list, and the arguments of a call, can also be a text of JSON, as in Parquet files, whose columns would otherwise have
the fields of all tools, and null where a tool does not have one. So null stands for a missing field.
"""

import json
from collections.abc import Mapping
from typing import Any

from pydantic_core import from_json

from tsugiki.errors import TsugikiError
from tsugiki.language import _


def read_tools(given: Any, source: str) -> str:
    """Return the tools of a row as a JSON list; empty if it has none."""
    return _functions(given, "tools", source, '[{"type": "function", "function": {"name": …, "parameters": {…}}}]')


def read_of_tools(turn: Mapping[str, Any], role: str, where: str) -> str:
    """Return what a turn has of tools besides its content, as a JSON object: calls, or the call that it answers."""
    if role == "tool":
        named = {name: str(turn[name]) for name in ("tool_call_id", "name") if turn.get(name)}
        return json.dumps(named, ensure_ascii=False) if named else ""
    calls = _functions(turn.get("tool_calls"), "tool_calls", where, '[{"function": {"name": …, "arguments": {…}}}]')
    if calls and role != "assistant":
        message = _("{where} has tool_calls, which only the assistant writes; remove them or the row")
        raise TsugikiError(message.format(where=where))
    return f'{{"tool_calls": {calls}}}' if calls else ""


def _functions(given: Any, name: str, where: str, shape: str) -> str:
    """Return a list of functions as JSON, each below the key `function`."""
    try:
        entries = [_function(_without_null(entry), name) for entry in _parsed(given or [])]
    except (ValueError, TypeError, KeyError) as error:
        message = _("{where} has {name} of another shape; write {shape}")
        raise TsugikiError(message.format(where=where, name=name, shape=shape)) from error
    return json.dumps(entries, ensure_ascii=False) if entries else ""


def _function(entry: Any, kind: str) -> dict[str, Any]:
    entry = dict(entry) if "function" in entry else {"type": "function", "function": entry}
    function = dict(entry["function"])
    if kind == "tool_calls":
        function["arguments"] = dict(_parsed(function.get("arguments") or {}))
    if not (isinstance(function["name"], str) and function["name"]):
        raise ValueError
    return {**entry, "function": function}


def _parsed(value: Any) -> Any:
    return from_json(value) if isinstance(value, str) else value


def _without_null(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_null(part) for name, part in value.items() if part is not None}
    return [_without_null(part) for part in value] if isinstance(value, list) else value
