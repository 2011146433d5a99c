"""Find training records that repeat text which is scored, so that they can be left out of training.

`duplicates` compares whole texts, so it does not find a work within a much longer one. Here a table has the hashes of
all sequences of 12 characters of the scored texts, which are few, and the training text is read once. A training record
repeats a scored text if one of the two contains at least 60 % of the other's sequences. Texts of less than about 80
characters contain nothing and are in nothing: a phrase may be in any text. What many records have in common, such as a
template or a licence, does not count. A work of 3,000 characters shares at most 0.4 % of its sequences with 9 million
characters of other Japanese works, and 16 % with 10 million of English works.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from tsugiki.data.corpus import Part, numbered
from tsugiki.data.duplicates import near_duplicates, sequence_hashes
from tsugiki.data.records import Record, text_to_compare
from tsugiki.data.splits import Integers, rare

_CONTAINED = 0.6
_MIN_SEQUENCES = 64
_MIN_HASHES = 16  # the same, where only some hashes are kept
_MOST_HASHES = 1 << 22  # all scored texts together; each hash takes about 20 bytes in the table
_COMMON, _COMMON_SHARE = 8, 0.05

Hashes: TypeAlias = npt.NDArray[np.uint64]
Kind: TypeAlias = Literal["held-out", "validation", "retention"]
Repeated: TypeAlias = dict[int, dict[Kind, str]]
"""Row -> what the texts that it repeats are scored for -> the source of one of them."""


class ScoredTexts:
    """Collects the sequences of scored texts, which are numbered in the order they are added."""

    def __init__(self) -> None:
        """Begin without a text."""
        self.texts: list[tuple[Kind, str]] = []
        """What each text is scored for, and its source."""
        self.every = 1
        """Only hashes that are multiples of this power of two are kept, so that the table has a limited size."""
        self._parts: list[tuple[Hashes, Integers]] = []
        self._size = 0

    def add(self, kind: Kind, records: Sequence[Record]) -> None:
        """Add the texts of a batch of records."""
        for hashes, owners in sequence_hashes([text_to_compare(record) for record in records]):
            kept = hashes % np.uint64(self.every) == 0
            self._parts.append((hashes[kept], len(self.texts) + owners[kept]))
            self._size += int(kept.sum())
        self.texts += [(kind, record.source) for record in records]
        while self._size > _MOST_HASHES:
            self.every *= 2
            hashes, texts = self._joined()
            kept = hashes % np.uint64(self.every) == 0
            self._parts, self._size = [(hashes[kept], texts[kept])], int(kept.sum())

    def table(self) -> tuple[Hashes, Integers]:
        """Return the sorted hashes of each text, without those that many texts have, and the text of each hash."""
        hashes, texts = self._joined()
        order = np.lexsort((texts, hashes))
        hashes, texts = hashes[order], texts[order]
        different = _begins(hashes) | _begins(texts)
        hashes, texts = hashes[different], texts[different]
        amounts = np.diff(np.append(np.flatnonzero(_begins(hashes)), len(hashes)))
        rare = ~np.repeat(_is_common(amounts, len(self.texts)), amounts)
        return hashes[rare], texts[rare]

    def _joined(self) -> tuple[Hashes, Integers]:
        parts = [(np.empty(0, np.uint64), np.empty(0, np.int64)), *self._parts]
        return np.concatenate([hashes for hashes, _ in parts]), np.concatenate([texts for _, texts in parts])


class Search:
    """Finds the records that repeat one of some scored texts. Records are looked at in batches, each record once."""

    def __init__(self, scored: ScoredTexts, records: int) -> None:
        """Prepare the search among this number of records."""
        self._scored, self._records = scored, records
        self._hashes, self._texts = scored.table()
        self._sizes = np.bincount(self._texts, minlength=len(scored.texts))  # hashes of each text
        bits = min(max(16 * len(self._hashes), 1 << 16).bit_length(), 26)
        self._shift = np.uint64(64 - bits)
        self._filled = np.zeros(1 << bits, np.bool_)  # by the first bits of a hash: whether the table may have it
        self._filled[self._hashes >> self._shift] = True
        self._seen_in = np.zeros(len(self._hashes), np.int64)  # records
        self._candidates: list[tuple[int, int, int, Integers]] = []
        """A record, the number of its hashes, a text, and the places in the table of the hashes that both have."""

    def look_at(self, numbers: Sequence[int], records: Sequence[Record]) -> None:
        """Look at some records, given with their numbers."""
        if not len(self._hashes):
            return
        sizes = np.zeros(len(records), np.int64)
        common = [np.empty(0, np.int64)]
        for hashes, owners in sequence_hashes([text_to_compare(record) for record in records]):
            kept = hashes % np.uint64(self._scored.every) == 0
            sizes += np.bincount(owners[kept], minlength=len(records))
            kept &= self._filled[hashes >> self._shift]
            common.append(self._common(hashes[kept], owners[kept]))
        owners, places = np.divmod(np.unique(np.concatenate(common)), len(self._hashes))
        np.add.at(self._seen_in, places, 1)
        texts = self._texts[places]
        order = np.lexsort((texts, owners))
        owners, places, texts = owners[order], places[order], texts[order]
        starts = np.flatnonzero(_begins(owners) | _begins(texts))
        amounts = np.diff(np.append(starts, len(owners)))
        shares = self._share(amounts, self._sizes[texts[starts]], sizes[owners[starts]])
        for pair in np.flatnonzero(shares >= _CONTAINED).tolist():
            first = starts[pair]
            owner = int(owners[first])
            both = places[first : first + amounts[pair]]
            self._candidates.append((numbers[owner], int(sizes[owner]), int(texts[first]), both))

    def found(self) -> Repeated:
        """Return the records that repeat a scored text: for each kind, the source of a text that is repeated."""
        rare = ~_is_common(self._seen_in, self._records)
        sizes = np.bincount(self._texts[rare], minlength=len(self._scored.texts))
        repeated: Repeated = {}
        for number, size, text, places in self._candidates:
            common = rare[places].sum()
            if self._share(common, sizes[text], size - len(places) + common) >= _CONTAINED:
                kind, source = self._scored.texts[text]
                repeated.setdefault(number, {}).setdefault(kind, source)
        return repeated

    def _common(self, hashes: Hashes, owners: npt.NDArray[np.intp]) -> Integers:
        """Return owner x size of the table + place in the table, for every hash that the table has."""
        first = np.searchsorted(self._hashes, hashes)
        known = self._hashes.take(first, mode="clip") == hashes
        first, hashes, owners = first[known], hashes[known], owners[known]
        amounts = np.searchsorted(self._hashes, hashes, "right") - first
        before = np.repeat(np.cumsum(amounts) - amounts, amounts)
        places = np.repeat(first, amounts) + np.arange(len(before)) - before
        rare = ~_is_common(self._seen_in[places], self._records)
        return np.asarray((np.repeat(owners, amounts) * len(self._hashes) + places)[rare], np.int64)

    def _share(self, common: Integers, one: Integers, other: Integers) -> npt.NDArray[np.float64]:
        """Return the share of the common hashes in the smaller of two texts that are long enough, otherwise 0."""
        enough = max(_MIN_SEQUENCES // self._scored.every, _MIN_HASHES)
        long = [np.where(size >= enough, size, np.inf) for size in (one, other)]
        return np.asarray(common / np.minimum(*long))


def repeated_text(part: Part, parts: Mapping[Kind, Part], scored: ScoredTexts) -> Repeated:
    """Find the rows of a part that repeat text which is scored; `parts` and `scored`: see `windows.read_scored`.

    So does a row with the same question, unless the question is common. A row with the same answer to another question
    does not. Near-duplicates are looked for in other corpora only, because a split keeps those of one together.
    """
    corpus, rows, _left_out = part
    index = corpus.index
    wanted = np.zeros(len(index), np.bool_)
    wanted[rows] = True
    search = Search(scored, len(rows))
    for numbers, batch in numbered(corpus.read()):
        chosen = np.flatnonzero(wanted[numbers.start : numbers.stop]).tolist()
        search.look_at([numbers[place] for place in chosen], [batch[place] for place in chosen])
    repeated = search.found()
    elsewhere = {kind: other for kind, other in parts.items() if other.corpus is not corpus}
    if elsewhere:
        signatures = [other.corpus.index.signatures[other.kept] for other in elsewhere.values()]
        others = [(kind, one.corpus.index.sources[row]) for kind, one in elsewhere.items() for row in one.kept.tolist()]
        for group in near_duplicates(np.concatenate([index.signatures, *signatures])):
            for number in (number for number in group if number < len(index) and wanted[number]):
                for kind, source in (others[other - len(index)] for other in group if other >= len(index)):
                    repeated.setdefault(number, {}).setdefault(kind, source)
    answering = set(rows[rare(index.answers)[rows]].tolist())
    for other in parts.values():  # another phrasing of a fact does not repeat it
        theirs = other.corpus.index.answers[other.kept]
        for number in [number for number in repeated if number in answering and index.answers[number] in theirs]:
            del repeated[number]
    asking = rows[rare(index.questions)[rows]]
    for kind, other in parts.items():
        theirs = other.corpus.index.questions[other.kept]
        for number in asking[np.isin(index.questions[asking], theirs)].tolist():
            source = other.corpus.index.sources[other.kept[(theirs == index.questions[number]).argmax()]]
            repeated.setdefault(number, {}).setdefault(kind, source)
    return repeated


def _begins(values: npt.NDArray[np.generic]) -> npt.NDArray[np.bool_]:
    """Return for each value whether it differs from the one before."""
    return np.append(True, values[1:] != values[:-1])[: len(values)]


def _is_common(amount: Integers, records: int) -> npt.NDArray[np.bool_]:
    return np.asarray(amount > max(_COMMON, _COMMON_SHARE * records))
