"""How well a tokenizer fits a text: the shares of tokens that are unknown, parts of characters, or single letters."""

import re
from typing import NamedTuple

import numpy as np

from tsugiki.annotations import PreTrainedTokenizerBase
from tsugiki.data.store import TokenStore
from tsugiki.language import _

_TOKENS = 200_000  # of the data that are counted
LITTLE_TEXT = 10_000
"""Number of training characters below which the user is warned that the text is short."""
_MOST_UNKNOWN, _MOST_PIECES, _MOST_LETTERS = 0.001, 0.2, 0.5
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


class Coverage(NamedTuple):
    """Shares of a text's tokens."""

    unknown: float = 0.0
    """Share of tokens that stand for characters which the tokenizer does not have."""
    pieces: float = 0.0
    """Share of tokens that are parts of characters (bytes)."""
    letters: float = 0.0
    """Share of tokens that are one letter of the Latin alphabet."""

    def notes(self) -> list[str]:
        """Return a sentence for each share that is high."""
        notes = []
        if self.unknown > _MOST_UNKNOWN:
            message = _(
                "{unknown:.1%} of the tokens are unknown: the tokenizer cannot write this text; use another base",
                unknown=self.unknown,
            )
            notes.append(message)
        if self.pieces > _MOST_PIECES:
            message = _(
                "{pieces:.0%} of the tokens are parts of characters (bytes), because the tokenizer does not know "
                "the characters; {flag:add_tokens} makes frequent ones tokens, and another base may know them",
                pieces=self.pieces,
            )
            notes.append(message)
        if self.letters > _MOST_LETTERS:
            message = _(
                "{letters:.0%} of the tokens are single letters, because the tokenizer was made for another language; "
                "a base of the text's language learns it better",
                letters=self.letters,
            )
            notes.append(message)
        return notes


def coverage_of(tokenizer: PreTrainedTokenizerBase, store: TokenStore) -> Coverage:
    """Count the tokens of a text, or of its beginning if it is long."""
    ids, counts = np.unique(np.asarray(store.ids[:_TOKENS]), return_counts=True)
    total = int(counts.sum())
    if not total:
        return Coverage()
    texts = tokenizer.convert_ids_to_tokens(ids.tolist())
    pieces = [_is_piece(tokenizer, token, text) for token, text in zip(ids.tolist(), texts, strict=True)]
    letters = [len(text) == 1 and text.isascii() and text.isalpha() for text in texts]
    kinds = ids == tokenizer.unk_token_id, pieces, letters
    return Coverage(*(float(np.dot(counts, kind) / total) for kind in kinds))


def _is_piece(tokenizer: PreTrainedTokenizerBase, token: int, text: str) -> bool:
    """Return whether a token is a part of a character."""
    return bool(_BYTE.fullmatch(text)) or "\ufffd" in tokenizer.decode([token])
