"""Read answers to prompts from the rows of tables: two of which one was chosen, or one that is marked good or bad.

    prompt, chosen, rejected     two answers to a prompt; texts, or lists of messages
    chosen, rejected             the same, where both begin with the prompt
    prompt, completion, label    an answer that is good (true or 1) or bad (false or 0)
    input, preferred_output, non_preferred_output    two answers as in OpenAI's format; `input` has messages and tools

The first three are the shapes of TRL. Each answer with its prompt is a record as in training on texts (see `schemas`),
and the chosen and the rejected answer of a row follow each other. The turns with which two lists of messages begin are
the prompt. Two texts without a prompt are documents; their common tokens are the prompt (`preference.pairs`).

Prompts that a model is to answer are read here, too, from tables with the column `prompt`.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Annotated, Any

from pydantic import AfterValidator

from tsugiki.data.read.files import Data, read_wanted
from tsugiki.data.read.schemas import (
    KEYS,
    NO_COLUMNS,
    PROMPTS,
    Columns,
    SchemaKeys,
    Wanted,
    check_surrogates,
    read_row,
    schema_of,
)
from tsugiki.data.records import Completion, Document, Reading, Record, without_spaces
from tsugiki.errors import TsugikiError, error_text
from tsugiki.language import _

ANSWER = "answer"
"""The field of a record that says what kind of answer it is: chosen, rejected, good or bad."""
PREFERRED = "input, preferred_output and non_preferred_output"
ANSWER_KEYS: SchemaKeys = {
    "chosen and rejected": ("chosen", "rejected"),
    "prompt, completion and label": ("prompt", "completion", "label"),
    PREFERRED: ("input", "preferred_output", "non_preferred_output"),
}
LABELS = {"true": "good", "1": "good", "false": "bad", "0": "bad"}
_LEARNED = {*(key for keys in (KEYS, ANSWER_KEYS) for fields in keys.values() for key in fields), *PROMPTS}


def read_answers(data: Data, columns: Columns = NO_COLUMNS, reading: Reading | None = None) -> Iterator[Record]:
    """Yield a record for each answer; the arguments are those of `read_records`.

    A row with an empty answer is left out, and named in `reading.empty`. A text without rows is an error.
    """
    wanted = Wanted(ANSWER_KEYS, _read_row, columns)
    return map(_checked, read_wanted(data, wanted, Reading() if reading is None else reading))


def holds_completions(data: Data, columns: Columns = NO_COLUMNS) -> bool:
    """Return whether the prompts are texts, and not lists of messages, by the first row."""
    return isinstance(next(read_answers(data, columns), None), Completion)


def _checked(record: Record) -> Record:
    if ANSWER not in record.fields:
        raise TsugikiError(
            "{source} is a text, not rows of answers; give a table with prompt, chosen and rejected",
            source=record.source,
        )
    return record


def _read_row(row: Mapping[str, Any], source: str, reading: Reading) -> list[Record]:
    """Return the records of a row, in which the answers are named as completions or texts."""
    schema = schema_of(row, source, ANSWER_KEYS)
    if schema == PREFERRED:
        row = _with_names_of_trl(row, source)
    paired = schema != "prompt, completion and label"
    answers = _two_answers(row, source, reading) if paired else {_label(row["label"], source): dict(row)}
    others = {name: value for name, value in row.items() if name not in _LEARNED}
    records = []
    for name, answer in answers.items():
        where = f"{source} ({name})"
        if _is_empty(answer["completion"]):
            reading.empty.append(where)
            return []
        names = ("prompt", "completion") if answer["prompt"] is not None else ("text",)
        learned = {field: answer["prompt" if field == "prompt" else "completion"] for field in names}
        if record := read_row({**others, **learned}, where):
            records.append(replace(record, fields={**record.fields, ANSWER: name}))
    return records


def _with_names_of_trl(row: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return a row of OpenAI's format with the prompt and the answers under the names of TRL."""
    field = ANSWER_KEYS[PREFERRED][0]
    asked = row[field]
    if not isinstance(asked, Mapping) or not isinstance(asked.get("messages"), list):
        raise TsugikiError('{source}: {field} must be an object like {{"messages": […]}}', source=source, field=field)
    answers = {"chosen": row["preferred_output"], "rejected": row["non_preferred_output"]}
    return {"prompt": asked["messages"], "tools": asked.get("tools"), **answers}


def _two_answers(row: Mapping[str, Any], source: str, reading: Reading) -> dict[str, dict[str, Any]]:
    """Return the prompt and the completion of both answers by their names; without a prompt, it is None."""
    chosen, rejected = row["chosen"], row["rejected"]
    prompt = next((row[name] for name in PROMPTS if row.get(name) is not None), None)
    if isinstance(chosen, list) != isinstance(rejected, list):
        raise TsugikiError(
            "{source}: one of chosen and rejected is a list of messages, the other is not; write both alike",
            source=source,
        )
    if isinstance(chosen, list):
        turns = zip(chosen[:-1], rejected[:-1], strict=False)  # at least the last turn is an answer
        begin = sum(1 for _pair in takewhile(lambda pair: pair[0] == pair[1], turns))
        if isinstance(prompt, list):
            begin = len(prompt) if chosen[:begin][: len(prompt)] == prompt else 0
        else:
            if begin and prompt is not None and not _is_asked(prompt, chosen[:begin]):
                reading.other_prompts.append(source)
            prompt = chosen[:begin] or ([] if prompt is None else [{"role": "user", "content": prompt}])
        chosen, rejected = chosen[begin:], rejected[begin:]
    return {
        "chosen": {"prompt": prompt, "completion": chosen},
        "rejected": {"prompt": prompt, "completion": rejected},
    }


def _is_asked(prompt: Any, turns: list[Any]) -> bool:
    """Return whether a prompt is a turn of those at the beginning of a conversation, or contains it."""
    contents = [turn.get("content", turn.get("value")) for turn in turns if isinstance(turn, Mapping)]
    texts = [without_spaces(content) for content in contents if isinstance(content, str)]
    return any(text and text in without_spaces(str(prompt)) for text in texts)


def _label(label: Any, source: str) -> str:
    """Return good or bad for a label, which a `.csv` file has as a text."""
    found = LABELS.get(str(label).strip().casefold())
    if found is None:
        raise TsugikiError(
            "{source} has {label} as label; it must be true for a good answer, or false for a bad one",
            source=source,
            label=error_text(repr(label), 40),
        )
    return found


def _is_empty(answer: Any) -> bool:
    """Return whether an answer, or its last message, has no text."""
    last = answer
    if isinstance(answer, list) and answer:
        last = answer[-1]
        if isinstance(last, Mapping):
            last = last.get("tool_calls") or last.get("content", last.get("value"))
    return last is None or last == [] or (isinstance(last, str) and not last.strip())


_ROW = "row"  # the field of a record that has all columns


def _asks(prompt: Any) -> Any:
    """Return a prompt, unless it is neither a text nor messages for the assistant to answer, which is a ValueError."""
    roles = [_role(turn) for turn in prompt] if isinstance(prompt, list) else []
    if not isinstance(prompt, str) and (not roles or None in roles or roles[-1] == "assistant"):
        raise ValueError(_("it is neither a text nor messages for the assistant to answer"))
    return prompt


@dataclass(frozen=True)
class PromptRow:
    """A prompt, and the row that it is from."""

    prompt: Annotated[str | list[dict[str, Any]], AfterValidator(_asks)]
    """A text, or messages with `role` and `content`."""
    fields: Mapping[str, Any]
    """The other columns of the row."""
    source: str
    """`file:line`."""

    @property
    def compared(self) -> str:
        """The prompt as it is compared with others: two that are the same here are one prompt."""
        return without_spaces(self.text).casefold()

    @property
    def text(self) -> str:
        """The prompt in one text, for display and comparison."""
        return self.prompt if isinstance(self.prompt, str) else "\n".join(turn["content"] for turn in self.prompt)


def read_prompts(data: Data, columns: Columns = NO_COLUMNS) -> list[PromptRow]:
    """Return the prompts in tables, in order; the arguments are those of `read_records`."""
    records = read_wanted(data, Wanted({"prompt": ("prompt",)}, _read_prompt, columns), Reading())
    return [_prompt_row(record.fields, record.source) for record in records]


def _read_prompt(row: Mapping[str, Any], source: str, reading: Reading) -> list[Document]:
    text = json.dumps(row, ensure_ascii=False, default=str)
    check_surrogates(text, source)
    return [Document("", source, {_ROW: text})]


def _prompt_row(fields: Mapping[str, str], source: str) -> PromptRow:
    row = json.loads(fields.get(_ROW, "{}"))
    try:
        return PromptRow(_asks(row.pop("prompt", None)), row, source)
    except ValueError as error:
        raise TsugikiError(
            "{source} has no prompt: a column with texts, or with lists of messages for the assistant to answer",
            source=source,
        ) from error


def _role(turn: Any) -> str | None:
    is_message = isinstance(turn, dict) and all(isinstance(turn.get(name), str) for name in ("role", "content"))
    return turn["role"] if is_message else None
