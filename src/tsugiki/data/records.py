"""Training records (documents, prompts with completions, conversations), and facts about how they were read."""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, Literal, TypeAlias

from tsugiki.errors import summarise_list
from tsugiki.language import _, ngettext

_UNSEEN = re.compile(r"[\s\u200b-\u200f\u2060\ufeff]+")

NONE = "none"
"""The value of a setting for a part of the text that is not wanted."""
AssistantTurns: TypeAlias = Literal["all", "last"]
"""The assistant's turns that count in the loss: all of them, or only the last one of a conversation."""


@dataclass(frozen=True)
class Document:
    """A text, all of which counts in the loss."""

    text: str
    source: str
    """Where the record was read: `file` or `file:line`."""
    fields: Mapping[str, str] = field(default_factory=dict, hash=False, compare=False)
    """Other short texts of the same row, such as author and title; held-out records can be chosen by them."""


@dataclass(frozen=True)
class Completion:
    """A prompt and its completion, of which only the completion counts in the loss.

    They become turns of the tokenizer's chat template if it has one, and are one text otherwise.
    """

    prompt: str
    completion: str
    source: str
    fields: Mapping[str, str] = field(default_factory=dict, hash=False, compare=False)
    system: str = ""
    """The system message before the turns, if any."""

    @property
    def text(self) -> str:
        """The prompt followed by the completion."""
        return self.prompt + self.completion

    @property
    def conversation(self) -> "Conversation":
        """The prompt as the user's turn, and the completion as the assistant's."""
        system = [Message("system", self.system)] if self.system else []
        turns = (*system, Message("user", self.prompt), Message("assistant", self.completion))
        return Conversation(turns, self.source, self.fields)


@dataclass(frozen=True)
class Message:
    """One turn of a conversation. An assistant's turn counts in the loss unless `in_loss` is False."""

    role: str
    content: str
    in_loss: bool = True
    of_tools: str = ""
    """A JSON object of what else the chat template gets: `tool_calls` of an assistant's turn, `tool_call_id` and `name`
    of a tool's; empty: nothing."""

    @property
    def text(self) -> str:
        """The content, and the calls of tools as JSON."""
        return self.content + (self.of_tools if self.role == "assistant" else "")

    @property
    def fields(self) -> dict[str, Any]:
        """The turn as chat templates get it."""
        return {"role": self.role, "content": self.content, **json.loads(self.of_tools or "{}")}


@dataclass(frozen=True)
class Conversation:
    """Turns that are rendered with the tokenizer's chat template. The assistant's turns count in the loss."""

    messages: tuple[Message, ...]
    source: str
    fields: Mapping[str, str] = field(default_factory=dict, hash=False, compare=False)
    tools: str = ""
    """The tools that the assistant can call: a JSON list, as chat templates get it; empty: none."""

    @property
    def text(self) -> str:
        """The texts of all turns, joined by line feeds."""
        return "\n".join(message.text for message in self.messages)


Record: TypeAlias = Document | Completion | Conversation


def target_text(record: Record, turns: AssistantTurns) -> str:
    """Return the text that counts in the loss: a document, a completion, or the assistant's turns."""
    match record:
        case Document():
            return record.text
        case Completion():
            return record.completion
        case Conversation():
            answers = [message for message in record.messages if message.role == "assistant"]
            chosen = answers if turns == "all" else answers[-1:]
            return "".join(message.text for message in chosen if message.in_loss)


def text_to_compare(record: Record) -> str:
    """Return the text by which near-duplicates are found, without system messages that many conversations share."""
    if isinstance(record, Conversation):
        return "\n".join(turn.text for turn in record.messages if turn.role not in ("system", "developer"))
    return record.text


def question(record: Record) -> str:
    """Return the prompt of a record, or the user's turns before the first answer, without differences of width.

    It is empty for a document.
    """
    match record:
        case Document():
            return ""
        case Completion():
            text = record.prompt
        case Conversation():
            roles = [message.role for message in record.messages]
            first = roles.index("assistant") if "assistant" in roles else len(roles)
            text = "\n".join(message.content for message in record.messages[:first] if message.role == "user")
    return without_spaces(text).casefold()


def answer(record: Record) -> str:
    """Return the completion of a record, or the assistant's turns, as `question` does; empty for a document."""
    return "" if isinstance(record, Document) else without_spaces(target_text(record, "all")).casefold()


def normalise_name(name: str) -> str:
    """Return the name of a person or a title in the form for comparison: `without_spaces`, at most 500 characters."""
    return without_spaces(name[:500])  # normalising a long row of combining marks takes quadratic time


def folded(text: str) -> str:
    """Return a text in Unicode's form NFKC, and without differences of upper and lower case."""
    return unicodedata.normalize("NFKC", text).casefold()


def without_spaces(text: str) -> str:
    """Return a text with normalised widths and composed characters, and without spaces, also those of no width."""
    return _UNSEEN.sub("", unicodedata.normalize("NFKC", text))


@dataclass
class Reading:
    """Facts that `files.read_records` collects; JSON can represent them."""

    files: list[str] = field(default_factory=list)
    """The files and data sets that are read, in order."""
    encodings: dict[str, list[str]] = field(default_factory=dict)
    """Encoding -> the files that have it; those in UTF-8 are not listed."""
    works: list[str] = field(default_factory=list)
    """Files of Aozora Bunko, from which notation was removed."""
    unresolved: int = 0
    """The number of characters in these files that have no code and became 〓."""
    annotated: list[str] = field(default_factory=list)
    """Other texts with annotations in Aozora Bunko's notation, which were kept."""
    special_tokens: int = 0
    """The number of special tokens that are written out in documents, such as <|endoftext|>."""
    empty: list[str] = field(default_factory=list)
    """Files without text, and rows that are left out, because they have null or an answer without text."""
    passed_over: list[str] = field(default_factory=list)
    """Files of another kind in a folder or a zip."""
    without_fields: list[str] = field(default_factory=list)
    """Tables in a folder or a zip that have none of the known fields."""
    other_prompts: list[str] = field(default_factory=list)
    """Rows with a prompt that is not that of their two conversations."""
    pairs: list[str] = field(default_factory=list)
    """Columns that were found to be a question and its answer, such as `question → answer`."""
    unused: list[str] = field(default_factory=list)
    """Columns of tables that are neither learned nor known to describe a record."""
    remarks: list[str] = field(default_factory=list)
    """Sentences about single files: what was left out of a PDF file, or whose turns of a chat are the answers."""

    def notes(self) -> list[str]:
        """Return one sentence for each fact that a user should know."""
        notes: list[tuple[int | list[str], str]] = [
            (self.pairs, _("using the columns {names}")),
            (self.unused, _("columns that are not learned: {names}")),
            (
                self.works,
                ngettext(
                    "{names}: a text of Aozora Bunko; header, footer, ruby and annotations are removed",
                    "{names}: texts of Aozora Bunko; headers, footers, ruby and annotations are removed",
                    len(self.works),
                ),
            ),
            (
                self.unresolved,
                ngettext(
                    "{count:,} character of these has no code, and became 〓",
                    "{count:,} characters of these have no code, and became 〓",
                    self.unresolved,
                ),
            ),
            (
                self.annotated,
                _(
                    "{names}: annotations such as ［＃５字下げ］ are learned as they are, because the text has neither "
                    "the header nor the footer of Aozora Bunko"
                ),
            ),
            (
                self.special_tokens,
                ngettext(
                    "{count:,} special token is written in the texts, such as the end token, and is learned as such",
                    "{count:,} special tokens are written in the texts, such as the end token, and are learned as such",
                    self.special_tokens,
                ),
            ),
            (
                self.empty,
                ngettext(
                    "{names}: empty, so nothing of it is used",
                    "{count:,} files or rows are empty, so nothing of them is used: {names}",
                    len(self.empty),
                ),
            ),
            (
                self.other_prompts,
                _(
                    "{names}: the prompt is none of the turns with which chosen and rejected begin; these are learned, "
                    "and it is not"
                ),
            ),
            (
                self.passed_over,
                ngettext(
                    "{count:,} file of another kind is passed over ({kinds})",
                    "{count:,} files of other kinds are passed over ({kinds})",
                    len(self.passed_over),
                ),
            ),
            (self.without_fields, _("{names}: passed over, because no known field is in it")),
        ]
        found = [
            _("{names}: read as {encoding}", names=summarise_list(names), encoding=encoding)
            for encoding, names in self.encodings.items()
        ] + self.remarks
        for facts, message in notes:
            names = [] if isinstance(facts, int) else facts
            if facts:
                found.append(
                    message.format(count=len(names) or facts, names=summarise_list(names), kinds=_kinds(names))
                )
        return found


def _kinds(names: list[str]) -> str:
    """Return the suffixes of files with their counts; the name of a file that has no suffix."""
    counts = Counter(PurePath(name).suffix.lower() or PurePath(name).name for name in names)
    return summarise_list([f"{kind} {count:,}" if count > 1 else kind for kind, count in counts.most_common()])
