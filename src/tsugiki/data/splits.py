"""Split records into training and held-out records, so that no text, near-duplicate or question is in both.

The held-out records are a share of all records, those with a certain field value (`author=…`), or a separate file.
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from tsugiki.data.duplicates import grouped, join_groups, near_duplicates
from tsugiki.data.records import NONE, Document, normalise_name
from tsugiki.data.store import RecordIndex
from tsugiki.errors import TsugikiError, error_text, summarise_list
from tsugiki.io.digests import sha256_bytes
from tsugiki.language import _

Integers: TypeAlias = npt.NDArray[np.int64]

_COMMON, _COMMON_SHARE = 8, 0.1

_PERCENT = re.compile(r"(\d+(?:\.\d+)?)\s*[%％]")  # digits and sign may be full-width


@dataclass(frozen=True)
class SeveralDocuments:
    """About a share of the text, in several documents if there are enough: from few, an interval says nothing."""

    share: float
    most: float
    """Share of the text that the documents may have, if several do not fit the share."""
    shortest: float
    """Lengths of the documents that come first, relative to the median."""
    longest: float
    documents: int = 6


HELD_OUT = SeveralDocuments(0.1, 0.25, 0.5, 1.25)
"""Like the other texts, and so that not too much of them is left out."""
VALIDATION = SeveralDocuments(0.05, 0.125, 0.0, 1.0, documents=8)
"""Many short documents take little of the text."""


@dataclass(frozen=True)
class FieldCondition:
    """A field and its value: records that have it are held out."""

    field: str
    value: str

    def rows(self, fields: Iterable[Mapping[str, Any]]) -> Integers:
        """Return the numbers of the rows with such fields, by `normalise_name`."""
        value = normalise_name(self.value)
        found = (normalise_name(str(one.get(self.field, ""))) == value for one in fields)
        return np.flatnonzero(np.fromiter(found, np.bool_))


Wanted: TypeAlias = float | SeveralDocuments | FieldCondition
"""What is held out, other than a file."""


def parse_held_out(
    held_out: float | str, setting: str = "held_out"
) -> float | SeveralDocuments | FieldCondition | Path | None:
    """Parse the setting `held_out`, or another setting with the same forms.

    A number is a share, as is a text such as `10%`, and a text `field=value` a condition; `auto` is `HELD_OUT`; `none`
    and 0 are None. Any other text, and one that names an existing file, is a path.
    """
    if held_out in (NONE, 0):
        return None
    if held_out == "auto" and not os.path.exists(held_out):
        return HELD_OUT
    if isinstance(held_out, str) and (percent := _PERCENT.fullmatch(held_out)) and not os.path.exists(held_out):
        held_out = float(percent[1]) / 100
    if isinstance(held_out, float | int):
        if not 0 < held_out < 1:
            raise TsugikiError(
                "{setting} is {held_out}; a share must be above 0 and below 1", setting=setting, held_out=held_out
            )
        return float(held_out)
    name, sign, value = held_out.partition("=")
    if not sign or os.path.exists(held_out):  # False also for a condition that is too long for the name of a file
        return Path(held_out)
    if not name.strip() or not normalise_name(value):
        shown = error_text(repr(held_out), 100)
        raise TsugikiError(
            "{setting} is {shown}; write a condition as author=… or title=…", setting=setting, shown=shown
        )
    return FieldCondition(name.strip(), value.strip())


def kept_together(index: RecordIndex, near: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return groups of records that are near-duplicates (the groups `near`), or ask the same question.

    A question that many records ask (see `rare`) does not keep these together.
    """
    asking = np.flatnonzero(rare(index.questions))
    _keys, labels = np.unique(index.questions[asking], return_inverse=True)
    return join_groups(len(index), [*near, *(asking[group].tolist() for group in grouped(labels))])


def rare(keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Return for each of the questions (or answers) of an index whether there is one, and few records have it.

    Many, as for a greeting or a label, are more than 8 and more than a tenth of the records that have a question, or
    more than half of them.
    """
    _keys, places, amounts = np.unique(keys, return_inverse=True, return_counts=True)
    same, records = amounts[places], np.count_nonzero(keys)
    few: npt.NDArray[np.bool_] = (same <= max(_COMMON, _COMMON_SHARE * records)) & ((2 * same <= records) | (same == 1))
    return np.asarray(few & (keys != 0))


def numbered_facts(index: RecordIndex) -> Integers:
    """Return for each record the number of its fact: equal for records with a rare answer that is the same."""
    numbers = np.arange(len(index), dtype=np.int64)
    with_answer = np.flatnonzero(rare(index.answers))
    _keys, first, places = np.unique(index.answers[with_answer], return_index=True, return_inverse=True)
    numbers[with_answer] = with_answer[first][places]
    return numbers


def near_duplicate_records(index: RecordIndex) -> list[list[int]]:
    """Return groups of near-duplicates with one record of each fact: phrasings of a fact are no near-duplicates."""
    facts = numbered_facts(index)
    groups = (np.array(group) for group in near_duplicates(index.signatures))
    return [one.tolist() for group in groups if len(one := group[np.unique(facts[group], return_index=True)[1]]) > 1]


def split_records(index: RecordIndex, held_out: Wanted, seed: int, groups: Sequence[Sequence[int]]) -> Integers:
    """Return the sorted numbers of the held-out records. Near-duplicates, the records of a group, stay together.

    With a share, about that share of all characters is held out, in several documents (`_by_share`), and records that
    ask the same question stay together (`kept_together`). The choice depends on `seed` and on the digest of each text.
    With a condition, the records that fulfil it are held out, together with their near-duplicates.

    `groups` holds the numbers of near-duplicates, as `near_duplicates` returns them.
    """
    if len(index) == 1:
        raise TsugikiError(
            "{sources} is the only record, so none can be held out; add records, give a held-out file, or train "
            "without one ({flag:held_out} none)",
            sources=index.sources[0],
        )
    inside = _choose(index, np.arange(len(index)), held_out, seed, groups)
    if len(inside) == len(index):
        why = (
            _("{field}={value} matches all records", field=held_out.field, value=held_out.value)
            if isinstance(held_out, FieldCondition)
            else _(
                "all records are near-duplicates of each other; give a held-out file, or train without one "
                "({flag:held_out} none)"
            )
        )
        raise TsugikiError("no record is left for training: {why}", why=why)
    return inside


def split_validation(
    index: RecordIndex, among: Integers, share: Wanted, seed: int, groups: Sequence[Sequence[int]]
) -> Integers:
    """Return the sorted numbers of the records that are chosen for validation from the training records `among`.

    A share is one of the characters of the records `among`, not of all records. `seed` orders the records as in
    `split_records`: with the same seed, those that come next after the held-out records are chosen. The other arguments
    are also those of `split_records`.
    """
    inside = _choose(index, among, share, seed, groups)
    if len(inside) in (0, len(among)):
        left = _("training") if len(inside) else _("validation")
        raise TsugikiError("no record is left for {left}: add text, or set validation to none", left=left)
    return inside


def duplicates(index: RecordIndex, near: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return groups of records of which one says all: near-duplicate texts, and equal rows of question and answer.

    Rows that are nearly alike can hold different facts, such as the opening hours of two shops.
    """
    of_texts = [list(group) for group in near if not index.answers[group].any()]
    asked = np.flatnonzero(index.answers)
    _rows, labels = np.unique(index.digests[asked], axis=0, return_inverse=True)
    return [*of_texts, *(asked[group].tolist() for group in grouped(labels.ravel()))]


def shorter_duplicates(index: RecordIndex, groups: Sequence[Sequence[int]]) -> Integers:
    """Return the sorted numbers of all records in the groups except the longest record of each group."""
    longest = {max(group, key=lambda number: (index.characters[number], -number)) for group in groups}
    return np.array(sorted({number for group in groups for number in group} - longest), np.int64)


def share_of(wanted: object) -> float | None:
    """Return the share of the text that is held out; None if it is not chosen by a share."""
    if isinstance(wanted, SeveralDocuments):
        return wanted.share
    return wanted if isinstance(wanted, float) else None


def split_document(document: Document, fraction: float) -> tuple[Document, Document]:
    """Split a single document into its beginning and its last `fraction`.

    The second part begins with the first line that starts after the place of the fraction; if there is none, with the
    line in which that place is; in a text of one line, at the place itself.
    """
    text = document.text
    place = int(len(text) * (1 - fraction))
    next_line = text.find("\n", place, len(text) - 1) + 1  # 0 if there is no line end, as below
    same_line = text.rfind("\n", 0, place) + 1
    cut = next_line or same_line or place
    parts = text[:cut], text[cut:]
    if not all(part.strip() for part in parts):
        raise TsugikiError(
            "{source} is too short to be split; add text or give a held-out file", source=document.source
        )
    return Document(parts[0], document.source), Document(parts[1], f"{document.source} (its end)")


def _choose(
    index: RecordIndex, among: Integers, wanted: Wanted, seed: int, groups: Sequence[Sequence[int]]
) -> Integers:
    """Return the sorted numbers of the records among some that are chosen, with those that stay with them."""
    belongs = np.arange(len(index))
    for group in groups if isinstance(wanted, FieldCondition) else kept_together(index, groups):
        belongs[list(group)] = group[0]
    if isinstance(wanted, FieldCondition):
        chosen = np.intersect1d(_matching(index, wanted), among)
    else:
        chosen = _by_share(index, among, wanted, seed, belongs)
    return np.intersect1d(np.flatnonzero(np.isin(belongs, belongs[chosen])), among)


def _by_share(
    index: RecordIndex, among: Integers, wanted: float | SeveralDocuments, seed: int, belongs: Integers
) -> Integers:
    """Choose whole groups by their rank while they fit the share; at least the smallest group.

    Of several phrasings of a fact (`numbered_facts`), at least one is left; if half of the groups are phrasings, they
    come first.
    """
    several = wanted if isinstance(wanted, SeveralDocuments) else SeveralDocuments(wanted, wanted, 0, np.inf, 0)
    sizes = np.bincount(belongs[among], index.characters[among], minlength=len(index))
    leaders = np.unique(belongs[among])
    total, median = float(sizes.sum()), float(np.median(sizes[leaders]))
    share, most = several.share * total, several.most * total

    def rank(number: int) -> int:
        return int.from_bytes(sha256_bytes(f"{seed}\0".encode() + index.digests[number].tobytes())[:8])

    ranks = np.fromiter(map(rank, leaders), np.uint64, len(leaders))  # 8 bytes of a digest, to save memory
    facts = numbered_facts(index)[leaders]
    left = np.bincount(facts)
    are_phrasings = left[facts] > 1
    preferred = (sizes[leaders] >= several.shortest * median) & (sizes[leaders] <= several.longest * median)
    if 2 * np.count_nonzero(are_phrasings) >= len(leaders):
        preferred = are_phrasings
    chosen: list[int] = []
    taken, smallest = 0.0, sizes[leaders].min()
    for place in np.lexsort((ranks, ~preferred)):
        size, fact = sizes[leaders[place]], facts[place]
        limit = most if preferred[place] and len(chosen) < several.documents else share
        if taken + size <= limit and not (are_phrasings[place] and left[fact] == 1):
            chosen.append(leaders[place])
            taken, left[fact] = taken + size, left[fact] - 1
        if taken + smallest > share and len(chosen) >= several.documents:
            break
    return np.array(chosen or [leaders[sizes[leaders].argmin()]], np.int64)


def _matching(index: RecordIndex, condition: FieldCondition) -> Integers:
    """Return the numbers of the records that fulfil a condition, by `normalise_name`; none is an error."""
    found = condition.rows(index.fields)
    if len(found):
        return found
    values = sorted({fields[condition.field] for fields in index.fields if condition.field in fields})
    if values:
        raise TsugikiError(
            "no record has {field}={value}; the values are {values}",
            field=condition.field,
            value=condition.value,
            values=summarise_list(values),
        )
    known = sorted({name for fields in index.fields for name in fields})
    if known:
        raise TsugikiError(
            "no record has a field {field}; the fields are {known}", field=condition.field, known=summarise_list(known)
        )
    raise TsugikiError(
        "no record has a field {field}; the data has no fields; hold out a share or a file", field=condition.field
    )
