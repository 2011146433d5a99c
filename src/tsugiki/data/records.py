"""The kinds of training records: a document, a prompt with its completion, or a conversation."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

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
    """A prompt and its completion, without a chat template. Only the completion counts in the loss."""

    prompt: str
    completion: str
    source: str
    fields: Mapping[str, str] = field(default_factory=dict, hash=False, compare=False)

    @property
    def text(self) -> str:
        """The prompt followed by the completion."""
        return self.prompt + self.completion


@dataclass(frozen=True)
class Message:
    """One turn of a conversation. An assistant's turn counts in the loss unless `in_loss` is False."""

    role: str
    content: str
    in_loss: bool = True


@dataclass(frozen=True)
class Conversation:
    """Turns that are rendered with the tokenizer's chat template. The assistant's turns count in the loss."""

    messages: tuple[Message, ...]
    source: str
    fields: Mapping[str, str] = field(default_factory=dict, hash=False, compare=False)

    @property
    def text(self) -> str:
        """The contents of all turns, joined by line feeds."""
        return "\n".join(message.content for message in self.messages)


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
            return "".join(message.content for message in chosen if message.in_loss)


def text_to_compare(record: Record) -> str:
    """Return the text by which near-duplicates are found, without system messages that many conversations share."""
    if isinstance(record, Conversation):
        return "\n".join(turn.content for turn in record.messages if turn.role not in ("system", "developer"))
    return record.text
