"""How well a tokenizer represents a text: the shares of unknown tokens, and of tokens that are parts of characters."""

import re
from typing import NamedTuple

import numpy as np

from tsugiki.annotations import PreTrainedTokenizerBase
from tsugiki.data.store import TokenStore
from tsugiki.language import _

_TOKENS = 200_000  # of the data that are counted
LITTLE_TEXT = 10_000
"""Number of training characters below which the user is warned that the text is short."""
_MOST_UNKNOWN, _MOST_PIECES = 0.001, 0.2
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


class Coverage(NamedTuple):
    """Shares of a text's tokens."""

    unknown: float = 0.0
    """Share of tokens that stand for characters which the tokenizer does not have."""
    pieces: float = 0.0
    """Share of tokens that are parts of characters (bytes)."""

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
        return notes


def coverage_of(tokenizer: PreTrainedTokenizerBase, store: TokenStore) -> Coverage:
    """Count the tokens of a text, or of its beginning if it is long."""
    ids, counts = np.unique(np.asarray(store.ids[:_TOKENS]), return_counts=True)
    total = int(counts.sum())
    if not total:
        return Coverage()
    of_token = dict(zip(ids.tolist(), counts.tolist(), strict=True))
    unknown = of_token.get(tokenizer.unk_token_id, 0)
    return Coverage(unknown / total, sum(of_token[token] for token in of_token if _is_piece(tokenizer, token)) / total)


def _is_piece(tokenizer: PreTrainedTokenizerBase, token: int) -> bool:
    """Return whether a token is a part of a character."""
    text = tokenizer.convert_ids_to_tokens(token)
    return bool(_BYTE.fullmatch(str(text))) or "\ufffd" in tokenizer.decode([token])
