"""Decode tokens while they are generated: only complete characters, and no text that may belong to a stop string."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
_BEFORE = 6  # tokens of the prompt: some tokenizers drop the space at the beginning of a text


class TextStream:
    """The text of new tokens, up to the first stop string."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", prompt: Sequence[int], stops: Sequence[str] = ()) -> None:
        """Create it for the tokens after a prompt; the text ends before the first of `stops`. None of them is empty."""
        self.tokenizer = tokenizer
        self.stops = stops
        self.stopped = False
        """Whether a stop string was found."""
        self._ids = list(prompt[-_BEFORE:])
        self._start, self._read = 0, len(self._ids)
        self._held = ""

    def add(self, token: int, may_stop: bool = True) -> str:
        """Add a token, and return the new text. Text that may be the beginning of a stop string is held back.

        Only if it `may_stop` can the text end with this token.
        """
        self._ids.append(token)
        self._held += self._new_text()
        return self._taken(self._possible_stop(), may_stop)

    def finish(self, may_stop: bool = True) -> str:
        """Return the text that was held back, up to a stop string. An incomplete character at the end is dropped."""
        if self.stopped:
            return ""
        self._held += self._tail().rstrip(_INCOMPLETE)
        return self._taken(0, may_stop)

    def _new_text(self) -> str:
        """Return the text since the last complete character; empty while the next one is incomplete."""
        if self._decode(self._start, len(self._ids)).endswith(_INCOMPLETE):
            return ""
        text = self._tail()
        self._start, self._read = self._read, len(self._ids)
        return text

    def _tail(self) -> str:
        """Return the text of the tokens that have not been read.

        It is the difference that they make to the text before them, because a token's text depends on its neighbours.
        A prompt of tokens can end within a character, which then is part of the difference.
        """
        before, whole = self._decode(self._start, self._read), self._decode(self._start, len(self._ids))
        return whole[len(before if whole.startswith(before) else before.rstrip(_INCOMPLETE)) :]

    def _decode(self, start: int, stop: int) -> str:
        text: str = self.tokenizer.decode(
            self._ids[start:stop], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def _possible_stop(self) -> int:
        """Return how many characters at the end may be the beginning of a stop string."""
        longest = min(len(self._held), max((len(stop) - 1 for stop in self.stops), default=0))
        return next(
            (n for n in range(longest, 0, -1) if any(stop.startswith(self._held[-n:]) for stop in self.stops)), 0
        )

    def _taken(self, kept: int, may_stop: bool) -> str:
        """Return what was held back, without the last `kept` characters; if there is a stop string, what is before."""
        ends = [place for stop in self.stops if (place := self._held.find(stop)) >= 0]
        self.stopped = may_stop and bool(ends)
        length = min(ends) if self.stopped else len(self._held) - kept
        text, self._held = self._held[:length], self._held[length:]
        return text
