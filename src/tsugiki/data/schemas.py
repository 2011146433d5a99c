"""From a row of a file to a record: which fields are known, and what is wrong with a row that does not fit them.

    text                            a document
    prompt, completion              two texts; or two lists of messages (as TRL has them)
    messages                        a list of {"role", "content"}
    conversations                   a list of {"from", "value"} (ShareGPT)
    instruction, output (, input)   one question and its answer (Alpaca)

A row with several of these is read as the one with more structure: some data sets keep the rendered `text` beside.
"""

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

from tsugiki.data.records import Completion, Conversation, Document, Message, Record
from tsugiki.errors import TsugikiError

KEYS: dict[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "conversations": ("conversations",),
    "prompt and completion": ("prompt", "completion"),
    "instruction and output": ("instruction", "output"),
    "text": ("text",),
}
"""The fields by which each kind of row is known, in the order of precedence."""

_ROLES = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "human": "user",
    "gpt": "assistant",
}
_NOT_LEARNED = ("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking", "audio")
_FIELD_LENGTH = 200


def schema_of(row: Mapping[str, Any], source: str) -> str:
    """Which of `KEYS` a row is. A field that is null counts as absent.

    Raises:
        TsugikiError: it is none of them.
    """
    present = {name for name, value in row.items() if value is not None}
    for schema, keys in KEYS.items():
        if present.issuperset(keys):
            return schema
    for keys in KEYS.values():
        for key in keys:
            if key in row and key not in present:
                raise TsugikiError(f"{source} has null for {key}; fill it or take the row out")
    for first, second in (("prompt", "completion"), ("instruction", "output")):
        for key, missing in ((first, second), (second, first)):
            if key in present:
                raise TsugikiError(f"{source} has {key} but no {missing}; give both")
    names = ", ".join(str(name)[:40] for name in list(row)[:8]) or "nothing"
    raise TsugikiError(
        f"{source} has none of {', '.join(reversed(KEYS))}, but {names}; rename its fields to one of these"
    )


def read_row(row: Mapping[str, Any], source: str) -> Record | None:
    """The record in a row, None for a document of white space alone.

    Messages have the roles system, developer, user, assistant or tool, and as content a text or a list of parts of
    text, which are joined. An assistant's message with `weight` 0 (OpenAI's) is read but not learned; so are those in
    a list-of-messages `prompt`. A `system` text beside ShareGPT's or Alpaca's fields becomes the first turn. Other
    short texts in the row become the record's `fields`.

    Args:
        row: field names to values, as JSON has them.
        source: `file:line`, for the record and for errors.

    Raises:
        TsugikiError: the row is of no known kind, or something in it cannot be learned.
    """
    schema = schema_of(row, source)
    if row.get("tools"):
        raise TsugikiError(f"{source} has tools, which are not learned; take the field out, or the row")
    used = {*KEYS[schema], "input", "system"}
    fields = {
        name: value
        for name, value in row.items()
        if name not in used and isinstance(value, str) and 0 < len(value) <= _FIELD_LENGTH
    }
    record: Record
    match schema:
        case "text":
            record = Document(_text(row, "text", source), source, fields)
            if not record.text.strip():
                return None
        case "prompt and completion" if isinstance(row["prompt"], str):
            record = Completion(_text(row, "prompt", source), _filled(row, "completion", source), source, fields)
        case "prompt and completion":
            asked = _messages(row, "prompt", source)
            learned = _messages(row, "completion", source, after=len(asked))
            asked = [replace(message, learned=message.role != "assistant") for message in asked]
            record = Conversation(_checked([*asked, *learned], source), source, fields)
        case "instruction and output":
            record = Conversation(_checked(_instruction(row, source), source), source, fields)
        case _:
            turns = _messages(row, schema, source)
            if turns and turns[0].role != "system":
                turns = [*_system(row, source), *turns]
            record = Conversation(_checked(turns, source), source, fields)
    _refuse_half_characters(record)
    return record


def _text(row: Mapping[str, Any], key: str, source: str) -> str:
    value = row[key]
    if not isinstance(value, str):
        raise TsugikiError(f"{source} has {_kind(value)} as {key}; it must be a text")
    return value


def _filled(row: Mapping[str, Any], key: str, source: str) -> str:
    value = _text(row, key, source)
    if not value.strip():
        raise TsugikiError(f"{source} has an empty {key}; fill it or take the row out")
    return value


def _system(row: Mapping[str, Any], source: str) -> list[Message]:
    if row.get("system") in (None, ""):
        return []
    return [Message("system", _filled(row, "system", source))]


def _instruction(row: Mapping[str, Any], source: str) -> list[Message]:
    if row.get("history"):
        raise TsugikiError(f"{source} has a history, which is not read; give the turns as messages")
    question = _filled(row, "instruction", source)
    if row.get("input") not in (None, ""):
        question += "\n\n" + _filled(row, "input", source)
    answer = Message("assistant", _filled(row, "output", source))
    return [*_system(row, source), Message("user", question), answer]


def _messages(row: Mapping[str, Any], key: str, source: str, after: int = 0) -> list[Message]:
    """The turns in a list; they are counted from `after` + 1 in errors."""
    turns = row[key]
    if not isinstance(turns, list):
        raise TsugikiError(f'{source}: {key} is {_kind(turns)}; it must be a list of {{"role": …, "content": …}}')
    return [_message(turn, f"{source}: turn {number}") for number, turn in enumerate(turns, after + 1)]


def _message(turn: Any, where: str) -> Message:
    if not isinstance(turn, Mapping):
        raise TsugikiError(f'{where} is {_kind(turn)}; it must be an object like {{"role": "user", "content": "…"}}')
    name = turn.get("role", turn.get("from"))
    role = _ROLES.get(name) if isinstance(name, str) else None
    if role is None:
        known = ", ".join(_ROLES)
        raise TsugikiError(f"{where} has the role {_shown(name)}; the roles are {known}; rename it or take the row out")
    for key in _NOT_LEARNED:
        if turn.get(key):
            raise TsugikiError(f"{where} ({role}) has {key}, which is not learned; take it out, or the row")
    content = turn.get("content", turn.get("value"))
    text = _content(content, f"{where} ({role})")
    if not text.strip():
        raise TsugikiError(f"{where} ({role}) is empty; fill it or take the row out")
    weight = turn.get("weight")
    if role == "assistant" and weight is not None and weight not in (0, 1):
        raise TsugikiError(f"{where} (assistant) has the weight {_shown(weight)}; it must be 0 or 1")
    return Message(role, text, learned=role != "assistant" or weight != 0)


def _content(content: Any, where: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise TsugikiError(f"{where} has {_kind(content)} as content; it must be a text")
    parts = []
    for part in content:
        text = part.get("text") if isinstance(part, Mapping) else part
        kind = part.get("type", "text") if isinstance(part, Mapping) else "text"
        if kind != "text":
            raise TsugikiError(f"{where} has a part of the type {_shown(kind)}; only text is learned, take the row out")
        if not isinstance(text, str):
            raise TsugikiError(f'{where} has a part without text; a part is like {{"type": "text", "text": "…"}}')
        parts.append(text)
    return "".join(parts)


def _checked(turns: list[Message], source: str) -> tuple[Message, ...]:
    """Turns that have an order in which a model can have answered."""
    if all(turn.role != "assistant" for turn in turns):
        raise TsugikiError(f"{source} has no assistant turn, so there is nothing to learn; add the answer")
    if turns[0].role == "assistant":
        raise TsugikiError(f"{source} begins with the assistant; put the user's turn before it")
    for number, (before, turn) in enumerate(pairwise(turns), 2):
        if before.role == turn.role == "assistant":
            raise TsugikiError(f"{source}: turn {number} is the assistant's again; join the two turns into one")
    return tuple(turns)


def _refuse_half_characters(record: Record) -> None:
    try:
        record.text.encode()
    except UnicodeEncodeError as error:
        half = ascii(record.text[error.start])[1:-1]
        raise TsugikiError(f"{record.source} holds half a character ({half}); mend or remove it") from error


def _kind(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "a text"
        case list():
            return "a list"
        case _:
            return "an object"


def _shown(value: Any) -> str:
    return "null" if value is None else repr(value)[:40]
