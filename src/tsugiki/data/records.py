"""What one line, row or file of data is: a document, a prompt with its completion, or a conversation."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

AssistantTurns: TypeAlias = Literal["all", "last"]
"""Which of an assistant's turns are learned."""


@dataclass(frozen=True)
class Document:
    """A text, learned whole.

    `source` says where a record came from (`file` or `file:line`); `fields` holds the short texts beside it, such as
    author and title, by which a held-out part can be chosen.
    """

    text: str
    source: str
    fields: Mapping[str, str] = field(default_factory=dict, hash=False, compare=False)


@dataclass(frozen=True)
class Completion:
    """A prompt, which is read, and its completion, which is learned; no chat template stands between them."""

    prompt: str
    completion: str
    source: str
    fields: Mapping[str, str] = field(default_factory=dict, hash=False, compare=False)

    @property
    def text(self) -> str:
        """Both, as one text."""
        return self.prompt + self.completion


@dataclass(frozen=True)
class Message:
    """One turn; an assistant's turn is learned unless `learned` says no."""

    role: str
    content: str
    learned: bool = True


@dataclass(frozen=True)
class Conversation:
    """Turns to be put into the tokenizer's chat template; the assistant's are learned."""

    messages: tuple[Message, ...]
    source: str
    fields: Mapping[str, str] = field(default_factory=dict, hash=False, compare=False)

    @property
    def text(self) -> str:
        """All turns, a line or more each."""
        return "\n".join(message.content for message in self.messages)


Record: TypeAlias = Document | Completion | Conversation


def learned_text(record: Record, turns: AssistantTurns) -> str:
    """What of a record is learned, as text: a document, a completion, or the assistant's turns."""
    match record:
        case Document():
            return record.text
        case Completion():
            return record.completion
        case Conversation():
            answers = [message for message in record.messages if message.role == "assistant"]
            chosen = answers if turns == "all" else answers[-1:]
            return "".join(message.content for message in chosen if message.learned)
