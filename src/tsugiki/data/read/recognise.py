"""Say what data are, by the first rows of each file: texts, questions, conversations, answers, or an unknown table."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, TypeAlias

from tsugiki.data.read.answers import ANSWER_KEYS, LABELS, PREFERRED
from tsugiki.data.read.files import Data, read_parts
from tsugiki.data.read.schemas import KEYS, NO_COLUMNS, Columns, Wanted, known_columns, schema_of, with_fields
from tsugiki.data.records import Document, Reading
from tsugiki.errors import TsugikiError

Recognised: TypeAlias = Literal["texts", "questions", "conversations", "pairs", "labels", "mixed", "table"]
"""`labels` are single answers that are marked good or bad, `mixed` several kinds; a `table` has no known columns."""

_KINDS: Mapping[str, Recognised] = {
    "text": "texts",
    "prompt and completion": "questions",
    "instruction and output": "questions",
    "messages": "conversations",
    "conversations": "conversations",
    "chosen and rejected": "pairs",
    "prompt, completion and label": "labels",
    PREFERRED: "pairs",
}
_ROWS = Wanted({"row": ()}, lambda row, where, _reading: [Document("", where, row)], NO_COLUMNS)
"""Reads any row as a document without text, whose fields are its cells."""


@dataclass(frozen=True)
class Found:
    """What data are."""

    kind: Recognised
    columns: Columns
    """Field of the schema -> column of the first table, where they differ."""
    rows: list[Mapping[str, Any]]
    """The first rows of the first table; none if there are texts only."""


def recognise(data: Data, columns: Columns = NO_COLUMNS, count: int = 3) -> Found:
    """Return what data are, and the first `count` rows of the first table; `columns` are those of `read_records`."""
    firsts = [list(islice(part, count)) for part in read_parts(data, _ROWS, Reading())]
    tables = [[one.fields for one in part] for part in firsts if part and not part[0].text]
    kinds: set[Recognised] = {"texts"} if len(tables) < sum(map(bool, firsts)) else set()
    used: Columns = {}
    for number, (row, *_others) in enumerate(tables):
        kind, found = _kind(row, columns)
        kinds.add(kind)
        used = used if number else found
    kind = "mixed" if len(kinds) > 1 else kinds.pop() if kinds else "texts"
    return Found(kind, used, tables[0] if tables else [])


def _kind(row: Mapping[str, Any], columns: Columns) -> tuple[Recognised, Columns]:
    """Return what a row is, and the columns that differ from the fields of its schema."""
    wanted = Wanted({**ANSWER_KEYS, **KEYS}, _ROWS.read, columns)
    used = known_columns(row, wanted)
    if used is None:
        return "table", {}
    named = with_fields(row, used)
    try:
        kind = _KINDS[schema_of(named, "", wanted.keys)]
    except TsugikiError:
        return "table", {}
    if kind == "labels" and str(named["label"]).strip().casefold() not in LABELS:
        kind = "questions"
    return kind, {field: column for field, column in used.items() if column in row}
