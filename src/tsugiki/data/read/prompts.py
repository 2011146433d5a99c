"""Read prompts to which a model is to write answers, from tables with the column `prompt`.

A prompt is a text, or a list of messages the last of which the assistant answers. All other columns of a row are kept:
rules that score answers need them, such as the right answer.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator

from tsugiki.data.read.files import Data, read_wanted
from tsugiki.data.read.schemas import NO_COLUMNS, Columns, Wanted, check_surrogates
from tsugiki.data.records import Document, Reading, without_spaces
from tsugiki.errors import TsugikiError
from tsugiki.language import _

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
    records = read_wanted(data, Wanted({"prompt": ("prompt",)}, _read_row, columns), Reading())
    return [_prompt_row(record.fields, record.source) for record in records]


def _read_row(row: Mapping[str, Any], source: str, reading: Reading) -> list[Document]:
    text = json.dumps(row, ensure_ascii=False, default=str)
    check_surrogates(text, source)
    return [Document("", source, {_ROW: text})]


def _prompt_row(fields: Mapping[str, str], source: str) -> PromptRow:
    row = json.loads(fields.get(_ROW, "{}"))
    try:
        return PromptRow(_asks(row.pop("prompt", None)), row, source)
    except ValueError as error:
        message = _(
            "{source} has no prompt: a column with texts, or with lists of messages for the assistant to answer"
        )
        raise TsugikiError(message.format(source=source)) from error


def _role(turn: Any) -> str | None:
    is_message = isinstance(turn, dict) and all(isinstance(turn.get(name), str) for name in ("role", "content"))
    return turn["role"] if is_message else None
