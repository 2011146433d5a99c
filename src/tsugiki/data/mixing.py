"""Mix other text into the training data, so that a model keeps more of its earlier abilities (replay).

Its records are taken in a random order, which depends on the seed, until their tokens are the requested share of all
tokens in the loss; the last document is cut there. The arrays are joined in memory.
"""

import sys
from dataclasses import dataclass, replace

import numpy as np

from tsugiki.annotations import PreTrainedTokenizerBase
from tsugiki.data.splits import Integers
from tsugiki.data.store import RecordIndex, TokenStore
from tsugiki.errors import TsugikiError, error_text


@dataclass(frozen=True)
class Mixed:
    """Training data with other text in them."""

    store: TokenStore
    """The records of the run's data and the records that were taken."""
    train: Integers
    """Numbers of the training records."""
    taken: Integers
    """Numbers of the records that were taken from the other text, in its own store."""
    tokens: int
    """The number of their tokens in the loss."""
    share: float
    """Their share of all tokens in the loss."""


def parse_mix(setting: str) -> tuple[str, float]:
    """Return the path and the share of `PATH:SHARE`."""
    path, colon, share = setting.rpartition(":")
    try:
        number = float(share)
    except ValueError:
        number = -1.0
    if not colon or not path or not 0 < number < 1:
        raise TsugikiError(
            "mix is {setting}; write PATH:SHARE with a share above 0 and below 1, such as other.txt:0.1",
            setting=error_text(repr(setting), 100),
        )
    return path, number


def mix(
    store: TokenStore,
    train: Integers,
    other: TokenStore,
    allowed: Integers,
    share: float | None,
    seed: int,
    tokenizer: PreTrainedTokenizerBase,
) -> Mixed:
    """Add records of another store to the training records.

    `train` has the numbers of the training records in `store`, and `allowed` those of the records in `other` that may
    be taken. They are taken until they have this share of all tokens in the loss; with too little text it is smaller.
    None: all are taken.
    The tokenizer counts the characters of a document that is cut.
    """
    learned = int(_target_tokens(store)[train].sum())
    wanted = sys.maxsize if share is None else round(learned * share / (1 - share))
    order = np.random.default_rng(seed).permutation(allowed)
    targets = _target_tokens(other)[order]
    count = min(int(np.searchsorted(np.cumsum(targets), wanted)) + 1, len(order))
    taken = order[:count]
    tokens = int(targets[:count].sum())
    starts, kept = other.offsets[taken], (other.offsets[taken + 1] - other.offsets[taken]).copy()
    characters = other.index.characters[taken].copy()
    excess = tokens - wanted
    if excess > 0 and other.index.splittable[taken[-1]] and targets[count - 1] > excess:
        kept[-1] -= excess
        tokens = wanted
        text = tokenizer.decode(other.ids[starts[-1] + 1 : starts[-1] + kept[-1]], clean_up_tokenization_spaces=False)
        characters[-1] = len(text)
    pieces = [slice(start, start + length) for start, length in zip(starts, kept, strict=True)]
    joined = TokenStore(
        index=_joined_index(store.index, other.index, taken, characters),
        ids=np.concatenate([store.ids, *(other.ids[piece] for piece in pieces)]),
        loss_mask=np.concatenate([store.loss_mask, *(other.loss_mask[piece] for piece in pieces)]),
        offsets=np.concatenate([store.offsets, store.offsets[-1] + np.cumsum(kept)]),
    )
    numbers = np.concatenate([train, len(store.index) + np.arange(count)])
    return Mixed(joined, numbers, taken, tokens, tokens / (learned + tokens))


def _target_tokens(store: TokenStore) -> Integers:
    """Return the number of tokens of each record that are in the loss."""
    return np.add.reduceat(store.loss_mask, store.offsets[:-1], dtype=np.int64)


def _joined_index(index: RecordIndex, other: RecordIndex, taken: Integers, characters: Integers) -> RecordIndex:
    return replace(
        index,
        characters=np.concatenate([index.characters, characters]),
        digests=np.concatenate([index.digests, other.digests[taken]]),
        signatures=np.concatenate([index.signatures, other.signatures[taken]]),
        splittable=np.concatenate([index.splittable, other.splittable[taken]]),
        sources=[*index.sources, *(other.sources[record] for record in taken)],
        fields=[*index.fields, *(other.fields[record] for record in taken)],
    )
