"""A corpus: examples, one a row, which can be a text, a question with its answer, a pair of answers or one answer.

`splits` gives each row a label. The rows with one label are a `Part` of the corpus. A file that a user gives for a
label is a corpus of its own, all rows of which have it.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tsugiki.data.duplicates import grouped, join_groups
from tsugiki.data.records import Record
from tsugiki.data.splits import Integers, kept_together, near_duplicate_records, numbered_facts
from tsugiki.data.store import RecordIndex, batches, read_index


@dataclass(frozen=True, eq=False)
class Corpus:
    """Examples, one a row."""

    index: RecordIndex
    """One entry a row; of a pair, that of its chosen answer."""
    read: Callable[[], Iterable[Record]]
    """Reads the rows again, in order; of a pair, the chosen answer."""
    near: Sequence[Sequence[int]]
    """Groups of rows that are near-duplicates."""

    def together(self) -> list[list[int]]:
        """Return groups of rows that count as one in an interval: near-duplicates, one question, or one fact."""
        groups = [*kept_together(self.index, self.near), *grouped(numbered_facts(self.index))]
        return join_groups(len(self.index), groups)


class Part(NamedTuple):
    """The rows of a corpus that have one label."""

    corpus: Corpus
    rows: Integers
    """Their sorted numbers."""
    left_out: Integers = np.zeros(0, np.int64)
    """Those of them that are not used, because they repeat other text that is scored."""

    @property
    def kept(self) -> Integers:
        """The rows that are used."""
        return np.setdiff1d(self.rows, self.left_out)


def whole(records: Iterable[Record]) -> Part:
    """Return all rows of a corpus whose text is held in memory."""
    held = list(records)
    index = read_index(held)
    return Part(Corpus(index, lambda: held, near_duplicate_records(index)), np.arange(len(index)))


def numbered(records: Iterable[Record]) -> Iterator[tuple[range, list[Record]]]:
    """Yield the records in batches of limited size, with their numbers."""
    first = 0
    for batch in batches(records):
        yield range(first, first + len(batch)), batch
        first += len(batch)
