"""What is learned and what is measured: by records, and never the same text, or nearly the same, on both sides.

The held-out part is a share of the records, those with a certain field (`author=…`), or a file of its own.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from tsugiki.data.duplicates import near_duplicates
from tsugiki.data.records import Document
from tsugiki.data.store import Index
from tsugiki.errors import TsugikiError, summarise_list

Integers: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Condition:
    """A field that held-out records have."""

    field: str
    value: str


def parse_held_out(held_out: float | str) -> float | Condition | Path:
    """A share, a condition written `field=value`, or the path of a file.

    Raises:
        TsugikiError: a share that is none, or a condition without a value.
    """
    if isinstance(held_out, float | int):
        if not 0 < held_out < 1:
            raise TsugikiError(f"held-out fraction is {held_out}; it must be above 0 and below 1")
        return float(held_out)
    name, sign, value = held_out.partition("=")
    if not sign or Path(held_out).exists():
        return Path(held_out)
    if not name.strip() or not value.strip():
        raise TsugikiError(f"held-out condition is {held_out!r}; write it as author=… or title=…")
    return Condition(name.strip(), value.strip())


def split_records(index: Index, held_out: float | Condition, seed: int, groups: Sequence[Sequence[int]]) -> Integers:
    """Numbers of the held-out records, sorted. Records of one group, near-duplicates, stay together.

    By share, about so much of the characters is held out, chosen by `seed`; the order of choice comes from the
    texts' digests, so that a record more moves no other. By condition, the records that fulfil it are held out,
    and with them whatever is nearly the same.

    Raises:
        TsugikiError: nothing is left to learn or to measure, or no record has the field or the value.
    """
    if len(index) == 1:
        raise TsugikiError(f"{index.sources[0]} is the only record, so none can be held out; add more, or name a file")
    belongs = np.arange(len(index))
    for group in groups:
        belongs[list(group)] = group[0]
    chosen = _by_share(index, held_out, seed, belongs) if isinstance(held_out, float) else _matching(index, held_out)
    inside = np.flatnonzero(np.isin(belongs, belongs[chosen]))
    if len(inside) == len(index):
        why = (
            f"{held_out.field}={held_out.value} holds all of it out"
            if isinstance(held_out, Condition)
            else ("all records are nearly the same text, so that none can be held out; name a held-out file")
        )
        raise TsugikiError(f"nothing is left to learn: {why}")
    return inside


def near_groups(index: Index) -> list[list[int]]:
    """Groups of records that are nearly the same text, or the same."""
    return near_duplicates(index.signatures)


def learned_and_measured(train: Index, held_out: Index) -> tuple[list[str], list[str]]:
    """Of the training records, those that a held-out file holds too: (the same text, nearly the same text).

    Each is told as `source (held out: source)`.
    """
    measured = {digest.tobytes(): source for digest, source in zip(held_out.digests, held_out.sources, strict=True)}
    same, near = [], []
    exact = set()
    for number, digest in enumerate(train.digests):
        if digest.tobytes() in measured:
            exact.add(number)
            same.append(f"{train.sources[number]} (held out: {measured[digest.tobytes()]})")
    for group in near_duplicates(np.concatenate([train.signatures, held_out.signatures])):
        outside = [number - len(train) for number in group if number >= len(train)]
        near += [
            f"{train.sources[number]} (held out: {held_out.sources[outside[0]]})"
            for number in group
            if outside and number < len(train) and number not in exact
        ]
    return same, near


def split_one(document: Document, fraction: float) -> tuple[Document, Document]:
    """A single document's beginning and its last `fraction`, cut at a line end where there is one.

    Raises:
        TsugikiError: it is too short.
    """
    text = document.text
    middle = int(len(text) * (1 - fraction))
    cut = text.find("\n", middle, len(text) - 1) + 1 or text.rfind("\n", 0, middle) + 1 or middle
    parts = text[:cut], text[cut:]
    if not all(part.strip() for part in parts):
        raise TsugikiError(f"{document.source} is too short to hold a part out; add text or name a held-out file")
    return Document(parts[0], document.source), Document(parts[1], f"{document.source} (its end)")


def _by_share(index: Index, fraction: float, seed: int, belongs: Integers) -> Integers:
    """Whole groups in the order of their rank, as long as they fit; at least the smallest."""
    sizes = np.bincount(belongs, index.characters, minlength=len(index))
    budget = fraction * float(index.characters.sum())
    leaders = np.unique(belongs).tolist()
    chosen = []
    for leader in sorted(leaders, key=lambda number: _rank(index.digests[number].tobytes(), seed)):
        if sizes[leader] <= budget:
            chosen.append(leader)
            budget -= sizes[leader]
    return np.array(chosen or [min(leaders, key=lambda number: sizes[number])], np.int64)


def _rank(digest: bytes, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}\0".encode() + digest).digest()


def _matching(index: Index, condition: Condition) -> Integers:
    matching = [number for number, fields in enumerate(index.fields) if fields.get(condition.field) == condition.value]
    if matching:
        return np.array(matching, np.int64)
    values = sorted({fields[condition.field] for fields in index.fields if condition.field in fields})
    if values:
        raise TsugikiError(f"no record has {condition.field}={condition.value}; there are {summarise_list(values)}")
    known = sorted({name for fields in index.fields for name in fields})
    raise TsugikiError(
        f"no record has a field {condition.field}; "
        + (f"the data has {summarise_list(known)}" if known else "the data has none, so hold out a share or a file")
    )
