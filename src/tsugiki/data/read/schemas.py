"""Convert a row of a file to a record, depending on the fields of the row.

    text                            a document
    prompt, completion              two texts, or two lists of messages (as in TRL)
    messages                        a list of {"role", "content"}
    conversations                   a list of {"from", "value"} (ShareGPT)
    instruction, output (, input)   a question and its answer (Alpaca)

If a row has the fields of several schemas, the one with more structure is used, because some data sets also contain
the rendered conversation as `text`. If it has those of none, the usual names of a question and its answer stand for
prompt and completion.

The tools of a conversation, and the calls of them, are in OpenAI's shape, which chat templates take:

    tools        [{"type": "function", "function": {"name": …, "description": …, "parameters": {a JSON schema}}}]
    tool_calls   [{"id": …, "type": "function", "function": {"name": …, "arguments": {…}}}]

A list, and the arguments of a call, can also be a text of JSON, as in Parquet files, whose columns would otherwise have
the fields of all tools, and null where a tool does not have one. So null stands for a missing field.
"""

import json
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise, product
from typing import Any, TypeAlias

from pydantic_core import from_json

from tsugiki.data.records import Completion, Conversation, Document, Message, Reading, Record
from tsugiki.errors import TsugikiError, error_text
from tsugiki.language import _, flag, listed, marked

Columns: TypeAlias = Mapping[str, str]
"""Field of a schema -> the name of its column, where a data set calls it otherwise."""

SchemaKeys: TypeAlias = Mapping[str, tuple[str, ...]]
"""The required fields of each schema, in order of precedence."""

NO_COLUMNS: Columns = {}


class NotDataError(TsugikiError):
    """A file has no rows or texts of a known schema, so it may not be training data."""


class NullError(TsugikiError):
    """A row has null where its schema needs a value."""


KEYS: dict[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "conversations": ("conversations",),
    "prompt and completion": ("prompt", "completion"),
    "instruction and output": ("instruction", "output"),
    "text": ("text",),
}
"""The required fields of each schema, in order of precedence."""


@dataclass(frozen=True)
class Wanted:
    """What the rows of tables are read as."""

    keys: SchemaKeys
    read: Callable[[Mapping[str, Any], str, Reading], Iterable[Record]]
    """Converts a row with its `file:line` to records, and may add facts to the `Reading`."""
    columns: Columns
    """Names of columns that differ from those of the schemas."""


_USUAL_PAIRS = (
    ("question", "answer"),
    ("q", "a"),
    ("query", "response"),
    ("input", "output"),
    ("prompt", "response"),
    *product(("質問", "問い", "問題", "プロンプト"), ("回答", "答え", "解答", "こたえ", "応答")),
    *product(("指示", "入力"), ("出力", "応答")),
    ("ユーザー", "アシスタント"),
)
"""Columns that stand for prompt and completion, in order of precedence; upper and lower case are the same."""

PROMPTS = ("prompt", "question", "query", "instruction", "質問", "問い", "指示", "プロンプト")
"""Columns that hold the prompt of a chosen and a rejected answer, in order of precedence."""

_ABOUT_RECORDS = ("title", "author", "translator", "source", "person_id", "kana", "orthography")
"""Fields by which held-out records are chosen; `tsugiki aozora` writes them."""

_ROLES = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
}
_UNSUPPORTED_KEYS = ("function_call", "reasoning_content", "reasoning", "thinking", "audio")
_LONGEST_NAME = 40  # characters
FIELD_LENGTH = 200  # characters; longer texts are not kept as fields of a record


def known_fields(keys: SchemaKeys) -> str:
    """Return the fields of all schemas, for messages."""
    return listed(_(" and ").join(fields) for fields in [*keys.values()][::-1])


def schema_of(row: Mapping[str, Any], source: str, schemas: SchemaKeys = KEYS) -> str:
    """Return the schema of a row, a key of `schemas`. A field that is null counts as missing."""
    present = {name for name, value in row.items() if value is not None}
    for schema, keys in schemas.items():
        if present.issuperset(keys):
            return schema
    for keys in schemas.values():
        for key in keys:
            if key in row and key not in present:
                raise NullError("{source} has null as {key}; give a value or remove the row", source=source, key=key)
    for keys in schemas.values():
        if given := [key for key in keys if key in present]:
            missing = next(key for key in keys if key not in present)
            if schemas is KEYS and present.issuperset(("chosen", "rejected")):
                raise TsugikiError(
                    "{source} has a chosen and a rejected answer; learn such pairs with {flag:preference simpo}",
                    source=source,
                )
            others = given if missing == "prompt" else [*given, *PROMPTS]
            column = next(iter(_longest_texts(row, 1, others)), "NAME")
            message = _("{source} has {key} but no {missing}; add it, or name its column: {columns}")
            columns = _columns_flag({missing: column})
            raise TsugikiError(message.format(source=source, key=given[0], missing=missing, columns=columns))
    raise NotDataError(
        "{source} has none of the fields {known}; it has {names}; name them with {columns}",
        source=source,
        known=known_fields(schemas),
        names=names_of(row),
        columns=ready_columns(row, schemas),
    )


def names_of(row: Iterable[str]) -> str:
    """Return the names of the columns of a row, for an error."""
    return ", ".join(error_text(name, _LONGEST_NAME) for name in list(row)[:8]) or _("nothing")


def ready_columns(row: Mapping[str, Any], schemas: SchemaKeys) -> str:
    """Return `--columns` for a row of unknown columns: its two longest texts as a pair, or a single one as a text.

    Where a name is as long as a sentence, the first line of the table is data.
    """
    texts = [] if any(len(name) > _LONGEST_NAME for name in row) else _longest_texts(row, 2)
    if "text" not in schemas:
        return _columns_flag(dict(zip(("chosen", "rejected"), [*texts, "NAME", "NAME"], strict=False)))
    fields = ("prompt", "completion") if len(texts) == 2 else ("text",)
    return _columns_flag(dict(zip(fields, texts or ["NAME"], strict=True)))


def _longest_texts(row: Mapping[str, Any], count: int, without: Iterable[str] = ()) -> list[str]:
    """Return the columns of the longest texts of a row, in its order; a comma in a name would separate columns."""
    lengths = {name: len(value) for name, value in row.items() if isinstance(value, str) and name and "," not in name}
    for name in without:
        lengths.pop(name, None)
    chosen = sorted(lengths, key=lambda name: -lengths[name])[:count]
    return [name for name in lengths if name in chosen]


def _columns_flag(columns: Columns) -> str:
    return flag("columns", shlex.quote(",".join(f"{field}={column}" for field, column in columns.items())))


def known_columns(names: Iterable[str], wanted: Wanted) -> Columns | None:
    """Return the columns of a table of these names: the given ones; if there are none, those of a usual pair.

    The result is None if the table has no schema in this way.
    """
    present, columns = list(names), wanted.columns
    fields = {*present, *(field for field, column in columns.items() if column in present)}
    if any(fields.issuperset(keys) for keys in wanted.keys.values()):
        return columns
    if "prompt and completion" not in wanted.keys:
        return None
    by_case = {name.casefold(): name for name in reversed(present)}
    pairs = (pair for pair in _USUAL_PAIRS if not columns and by_case.keys() >= {*pair})
    return next(({"prompt": by_case[prompt], "completion": by_case[answer]} for prompt, answer in pairs), None)


def with_fields(row: Mapping[str, Any], columns: Columns) -> Mapping[str, Any]:
    """Return a row in which the given columns have the names of `schemas`."""
    named = {field: row[column] for field, column in columns.items() if column in row}
    if not named:
        return row
    return {name: value for name, value in row.items() if name not in columns.values()} | named


def unused_columns(row: Iterable[str], schema: str, keys: SchemaKeys) -> list[str]:
    """Return the fields of a row that are neither learned nor known to describe the record."""
    also_learned = {
        "text": (),
        "instruction and output": ("input", "system"),
        "chosen and rejected": (*PROMPTS, "system"),
    }.get(schema, ("system", "tools"))
    return [name for name in row if name not in {*keys[schema], *also_learned, *_ABOUT_RECORDS}]


def parse_columns(texts: str | Iterable[str]) -> dict[str, str]:
    """Parse names of columns, given once or several times in the form `prompt=question,completion=answer`."""
    found: dict[str, str] = {}
    for text in [texts] if isinstance(texts, str) else texts:
        for field, sign, column in ([word.strip() for word in part.partition("=")] for part in text.split(",")):
            if not (field and sign and column):
                message = _(
                    "columns are {text}; write field=column, such as prompt=question,completion=answer",
                    text=error_text(repr(text), 100),
                )
                raise ValueError(message)
            if field in found:
                raise ValueError(_("columns name {field} twice; give it once", field=error_text(field, 100)))
            found[field] = column
    return found


def read_row(row: Mapping[str, Any], source: str) -> Record | None:
    """Convert a row to a record; return None for a document that contains only white space.

    The role of a message is system, developer, user, assistant or tool. Its content is a text or a list of text
    parts, which are joined. An assistant's message does not count in the loss if its `weight` is 0 (as in OpenAI's
    format), or if it is part of a `prompt` that is a list of messages. It can have `tool_calls` beside or instead of a
    content; `tools` of the row are what can be called. A `system` text next to a pair's or ShareGPT's
    fields becomes the first turn. Other short texts and whole numbers of the row become the record's
    `fields`.

    `row` holds values as JSON represents them; `source` is `file:line`, for the record and for errors.
    """
    schema = schema_of(row, source)
    if schema == "prompt and completion" and isinstance(row.get("label"), bool):
        raise TsugikiError(
            "{source} has an answer that is marked good or bad (label), and a bad one must not be learned like a good "
            "one; learn them with {flag:preference kto}, or rename the column",
            source=source,
        )
    tools = read_tools(row.get("tools"), source)
    used = {*KEYS[schema], "input", "system", "tools"}
    fields = {
        name: str(value)
        for name, value in row.items()
        if name not in used
        and isinstance(value, str | int)
        and not isinstance(value, bool)
        and 0 < len(str(value)) <= FIELD_LENGTH
    }
    record: Record
    match schema:
        case "text":
            record = Document(_text(row, "text", source), source, fields)
            if not record.text.strip():
                return None
        case "prompt and completion" if isinstance(row["prompt"], str):
            record = _pair(row, _text(row, "prompt", source), "completion", source, fields)
        case "prompt and completion":
            prompt = _messages(row, "prompt", source)
            completion = _messages(row, "completion", source, after=len(prompt))
            prompt = [replace(message, in_loss=message.role != "assistant") for message in prompt]
            record = Conversation(_check_turns([*prompt, *completion], source), source, fields)
        case "instruction and output":
            record = _pair(row, _instruction(row, source), "output", source, fields).conversation
        case _:
            turns = _messages(row, schema, source)
            if turns and turns[0].role != "system" and (system := _system(row, source)):
                turns = [Message("system", system), *turns]
            record = Conversation(_check_turns(turns, source), source, fields)
    if tools:
        if not isinstance(record, Conversation):
            raise TsugikiError(
                "{source} has tools, which only lists of messages can call; remove the field or the row", source=source
            )
        record = replace(record, tools=tools)
    text = record.text
    if isinstance(record, Conversation):
        text += record.tools + "".join(turn.of_tools for turn in record.messages)
    check_surrogates(text, source)
    return record


def _text(row: Mapping[str, Any], key: str, source: str) -> str:
    value = row[key]
    if not isinstance(value, str):
        raise TsugikiError(
            "{source} has {type_name} as {key}; it must be a text", source=source, type_name=_type_name(value), key=key
        )
    return value


def _non_empty_text(row: Mapping[str, Any], key: str, source: str) -> str:
    value = _text(row, key, source)
    if not value.strip():
        raise TsugikiError("{source} has an empty {key}; fill it or remove the row", source=source, key=key)
    return value


def _system(row: Mapping[str, Any], source: str) -> str:
    return "" if row.get("system") in (None, "") else _non_empty_text(row, "system", source)


def _pair(row: Mapping[str, Any], prompt: str, answer: str, source: str, fields: Mapping[str, str]) -> Completion:
    """Return a prompt with its completion, which is the field `answer`, and the system message of the row."""
    return Completion(prompt, _non_empty_text(row, answer, source), source, fields, _system(row, source))


def _instruction(row: Mapping[str, Any], source: str) -> str:
    if row.get("history"):
        raise TsugikiError("{source} has a history, which is not supported; give all turns as messages", source=source)
    question = _non_empty_text(row, "instruction", source)
    if row.get("input") not in (None, ""):
        question += "\n\n" + _non_empty_text(row, "input", source)
    return question


def _messages(row: Mapping[str, Any], key: str, source: str, after: int = 0) -> list[Message]:
    """Return the messages of a list. Errors number its turns from `after` + 1."""
    turns = row[key]
    if not isinstance(turns, list):
        raise TsugikiError(
            '{source}: {key} is {type_name}; it must be a list of {{"role": …, "content": …}}',
            source=source,
            key=key,
            type_name=_type_name(turns),
        )
    return [
        _message(turn, _("{source}: turn {number}", source=source, number=number))
        for number, turn in enumerate(turns, after + 1)
    ]


def _message(turn: Any, where: str) -> Message:
    if not isinstance(turn, Mapping):
        raise TsugikiError(
            '{where} is {type_name}; it must be an object like {{"role": "user", "content": "…"}}',
            where=where,
            type_name=_type_name(turn),
        )
    name = turn.get("role", turn.get("from"))
    role = _ROLES.get(name) if isinstance(name, str) else None
    if role is None:
        known = listed(_ROLES)
        raise TsugikiError(
            "{where} has the unknown role {abbreviate}; use one of {known}",
            where=where,
            abbreviate=_abbreviate(name),
            known=known,
        )
    for key in _UNSUPPORTED_KEYS:
        if turn.get(key):
            raise TsugikiError(
                "{where} ({role}) has {key}, which is not supported; remove it or the row",
                where=where,
                role=role,
                key=key,
            )
    content = turn.get("content", turn.get("value"))
    text, of_tools = _content(content, f"{where} ({role})"), read_of_tools(turn, role, f"{where} ({role})")
    if not text.strip() and not (role == "assistant" and of_tools):
        raise TsugikiError("{where} ({role}) is empty; fill it or remove the row", where=where, role=role)
    weight = turn.get("weight")
    if role == "assistant" and weight is not None and weight not in (0, 1):
        raise TsugikiError(
            "{where} (assistant) has weight {abbreviate}; it must be 0 or 1",
            where=where,
            abbreviate=_abbreviate(weight),
        )
    return Message(role, text, role != "assistant" or weight != 0, of_tools)


def _content(content: Any, where: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise TsugikiError(
            "{where} has {type_name} as content; it must be a text", where=where, type_name=_type_name(content)
        )
    parts = []
    for part in content:
        text = part.get("text") if isinstance(part, Mapping) else part
        kind = part.get("type", "text") if isinstance(part, Mapping) else "text"
        if kind != "text":
            raise TsugikiError(
                "{where} has a part of type {abbreviate}; only text is supported; remove the row",
                where=where,
                abbreviate=_abbreviate(kind),
            )
        if not isinstance(text, str):
            raise TsugikiError(
                '{where} has a part without text; write a part as {{"type": "text", "text": "…"}}', where=where
            )
        parts.append(text)
    return "".join(parts)


def _check_turns(turns: list[Message], source: str) -> tuple[Message, ...]:
    """Check that the assistant answers the user and never writes two turns in a row; return the turns."""
    if all(turn.role != "assistant" for turn in turns):
        raise TsugikiError(
            "{source} has no turn of the assistant, so there is nothing to train on; add the answer", source=source
        )
    if turns[0].role == "assistant":
        raise TsugikiError("{source} begins with a turn of the assistant; put the user's turn before it", source=source)
    for number, (before, turn) in enumerate(pairwise(turns), 2):
        if before.role == turn.role == "assistant":
            raise TsugikiError(
                "{source}: turn {number} is a second turn of the assistant; join the two turns",
                source=source,
                number=number,
            )
    return tuple(turns)


def check_surrogates(text: str, source: str) -> None:
    """Raise a TsugikiError if a text has an unpaired surrogate, which tokenizers refuse."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        surrogate = ascii(text[error.start])[1:-1]
        raise TsugikiError(
            "{source} contains an unpaired surrogate ({surrogate}); repair or remove it",
            source=source,
            surrogate=surrogate,
        ) from error


_TYPE_NAMES = {
    bool: marked("true or false"),
    int: marked("a number"),
    float: marked("a number"),
    str: marked("a text"),
    list: marked("a list"),
}


def _type_name(value: Any) -> str:
    return "null" if value is None else _(_TYPE_NAMES.get(type(value), marked("an object")))


def _abbreviate(value: Any) -> str:
    return "null" if value is None else repr(value)[:40]


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
        raise TsugikiError(
            "{where} has tool_calls, which only the assistant writes; remove them or the row", where=where
        )
    return f'{{"tool_calls": {calls}}}' if calls else ""


def _functions(given: Any, name: str, where: str, shape: str) -> str:
    """Return a list of functions as JSON, each below the key `function`."""
    try:
        entries = [_function(_without_null(entry), name) for entry in _parsed(given or [])]
    except (ValueError, TypeError, KeyError) as error:
        raise TsugikiError(
            "{where} has {name} of another shape; write {shape}", where=where, name=name, shape=shape
        ) from error
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
