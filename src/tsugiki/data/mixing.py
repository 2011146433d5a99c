"""Mix other text into the training data, so that a model keeps more of its earlier abilities (replay).

Records of the other text are taken in a random order, which depends on the seed, until their tokens are the requested
share of all training tokens; the last document is cut there. The arrays are joined in memory.
"""

from dataclasses import dataclass, replace

import numpy as np

from tsugiki.data.splits import Integers
from tsugiki.data.store import RecordIndex, TokenStore
from tsugiki.errors import TsugikiError, error_text
from tsugiki.language import _


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
    """The number of tokens of these records."""
    share: float
    """Their share of all training tokens."""


def parse_mix(setting: str) -> tuple[str, float]:
    """Return the path and the share of `PATH:SHARE`.

    Raises:
        TsugikiError: the setting has another form, or the share is not between 0 and 1.
    """
    path, colon, share = setting.rpartition(":")
    try:
        number = float(share)
    except ValueError:
        number = -1.0
    if not colon or not path or not 0 < number < 1:
        raise TsugikiError(
            _("mix is {setting}; write PATH:SHARE with a share above 0 and below 1, such as other.txt:0.1").format(
                setting=error_text(repr(setting), 100)
            )
        )
    return path, number


def mix(store: TokenStore, train: Integers, other: TokenStore, allowed: Integers, share: float, seed: int) -> Mixed:
    """Add records of another store to the training records.

    Args:
        store: all records of the run's data.
        train: numbers of the training records in it.
        other: the text to take from.
        allowed: numbers of the records in `other` that may be taken.
        share: the share of all training tokens that the taken records should have. With too little text it is smaller.
        seed: the seed of the order in which records are taken.
    """
    lengths = other.offsets[1:] - other.offsets[:-1]
    wanted = round(int(_lengths(store, train).sum()) * share / (1 - share))
    order = np.random.default_rng(seed).permutation(allowed)
    ends = np.cumsum(lengths[order])
    count = min(int(np.searchsorted(ends, wanted)) + 1, len(order))
    taken = order[:count]
    kept = lengths[taken].copy()
    excess = int(kept.sum()) - wanted
    if excess > 0 and other.index.splittable[taken[-1]] and kept[-1] > excess:
        kept[-1] -= excess
    starts = other.offsets[taken]
    pieces = [slice(start, start + length) for start, length in zip(starts, kept, strict=True)]
    joined = TokenStore(
        index=_joined_index(store.index, other.index, taken),
        ids=np.concatenate([store.ids, *(other.ids[piece] for piece in pieces)]),
        loss_mask=np.concatenate([store.loss_mask, *(other.loss_mask[piece] for piece in pieces)]),
        offsets=np.concatenate([store.offsets, store.offsets[-1] + np.cumsum(kept)]),
    )
    numbers = np.concatenate([train, len(store.index) + np.arange(count)])
    tokens = int(kept.sum())
    return Mixed(joined, numbers, taken, tokens, tokens / int(_lengths(joined, numbers).sum()))


def _lengths(store: TokenStore, records: Integers) -> Integers:
    found: Integers = store.offsets[records + 1] - store.offsets[records]
    return found


def _joined_index(index: RecordIndex, other: RecordIndex, taken: Integers) -> RecordIndex:
    return replace(
        index,
        characters=np.concatenate([index.characters, other.characters[taken]]),
        digests=np.concatenate([index.digests, other.digests[taken]]),
        signatures=np.concatenate([index.signatures, other.signatures[taken]]),
        splittable=np.concatenate([index.splittable, other.splittable[taken]]),
        sources=[*index.sources, *(other.sources[record] for record in taken)],
        fields=[*index.fields, *(other.fields[record] for record in taken)],
    )
