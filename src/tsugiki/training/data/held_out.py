"""Read the text that a run scores and does not train on, and find the training records that repeat it."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

import numpy as np

from tsugiki.data.blocks import Integers
from tsugiki.data.duplicates import grouped, join_groups, near_duplicates
from tsugiki.data.overlap import Kind, ScoredTexts, Search
from tsugiki.data.records import Record
from tsugiki.data.splits import kept_together, near_duplicate_records, numbered_facts, rare
from tsugiki.data.store import RecordIndex, batches, read_index
from tsugiki.training.data.windows import Window, WindowChoice

Repeated: TypeAlias = dict[int, dict[Kind, str]]
"""Record -> what the texts that it repeats are scored for -> the source of one of them."""


class HeldOut:
    """Records that are scored and not trained on."""

    def __init__(
        self, kind: Kind, index: RecordIndex, numbers: Integers, limit: int, groups: Sequence[Sequence[int]]
    ) -> None:
        """Choose the records of an index by their sorted numbers; their text is added while it is read.

        `limit` is the approximate number of characters to score, and `groups` are near-duplicates, as numbers in the
        index.
        """
        self.kind: Kind = kind
        self.index, self.numbers = index, numbers
        self.all_numbers = numbers
        self._places = {number: place for place, number in enumerate(numbers.tolist())}
        together = join_groups(len(index), [*kept_together(index, groups), *grouped(numbered_facts(index))])
        inside = [[self._places[number] for number in group if number in self._places] for group in together]
        self._choice = WindowChoice(index.characters[numbers].tolist(), limit, inside)

    @property
    def windows(self) -> list[Window]:
        """The text that is scored."""
        return self._choice.windows

    def numbers_of(self, windows: Sequence[Window]) -> Integers:
        """Return the sorted numbers of the records that some of the windows are from."""
        return np.unique(self.all_numbers[[window.document for window in windows]])

    def add(self, numbers: Iterable[int], records: Iterable[Record], scored: ScoredTexts) -> None:
        """Add the text of those of the numbered records that are among these records."""
        chosen = [record for number, record in zip(numbers, records, strict=True) if number in self._places]
        for record in chosen:
            self._choice.add(record)
        scored.add(self.kind, chosen)

    def leave_out(self, numbers: Iterable[int]) -> None:
        """Leave out records and their text."""
        places = {self._places[number] for number in numbers}
        kept = np.array([place not in places for place in range(len(self.numbers))], np.bool_)
        self.numbers = self.numbers[kept]
        self._choice.windows = [window for window in self.windows if window.document not in places]


def nothing_held_out(index: RecordIndex) -> HeldOut:
    """Return no records of an index, where the settings hold nothing out."""
    return HeldOut("held-out", index, np.zeros(0, np.int64), 0, [])


def read_held_out(kind: Kind, records: Iterable[Record], limit: int, scored: ScoredTexts) -> HeldOut:
    """Read held-out records that are no part of the data; see `HeldOut` for the arguments."""
    held = list(records)
    index = read_index(held)
    part = HeldOut(kind, index, np.arange(len(index)), limit, near_duplicate_records(index))
    for numbers, batch in numbered(held):
        part.add(numbers, batch, scored)
    return part


def numbered(records: Iterable[Record]) -> Iterator[tuple[range, list[Record]]]:
    """Yield the records in batches of limited size, with their numbers."""
    first = 0
    for batch in batches(records):
        yield range(first, first + len(batch)), batch
        first += len(batch)


def repeated_text(
    records: Iterable[Record], index: RecordIndex, numbers: Integers, parts: Sequence[HeldOut], scored: ScoredTexts
) -> Repeated:
    """Find those of the numbered records that repeat a scored text: see `data.overlap`.

    So does a record with the same question, unless the question is common. A record with the same answer to another
    question does not. Near-duplicates are looked for elsewhere only, because a split keeps those within the index
    together. `records` are all records of the index.
    """
    wanted = np.zeros(len(index), np.bool_)
    wanted[numbers] = True
    search = Search(scored, len(numbers))
    for batch_numbers, batch in numbered(records):
        chosen = np.flatnonzero(wanted[batch_numbers.start : batch_numbers.stop]).tolist()
        search.look_at([batch_numbers[place] for place in chosen], [batch[place] for place in chosen])
    repeated = search.found()
    elsewhere = [part for part in parts if part.index is not index]
    if elsewhere:
        signatures = [part.index.signatures[part.numbers] for part in elsewhere]
        others = [(part.kind, part.index.sources[number]) for part in elsewhere for number in part.numbers.tolist()]
        for group in near_duplicates(np.concatenate([index.signatures, *signatures])):
            for number in (number for number in group if number < len(index) and wanted[number]):
                for kind, source in (others[other - len(index)] for other in group if other >= len(index)):
                    repeated.setdefault(number, {}).setdefault(kind, source)
    answering = set(numbers[rare(index.answers)[numbers]].tolist())
    for part in parts:  # another phrasing of a fact does not repeat it
        theirs = part.index.answers[part.numbers]
        for number in [number for number in repeated if number in answering and index.answers[number] in theirs]:
            del repeated[number]
    asking = numbers[rare(index.questions)[numbers]]
    for part in parts:
        theirs = part.index.questions[part.numbers]
        for number in asking[np.isin(index.questions[asking], theirs)].tolist():
            source = part.index.sources[part.numbers[(theirs == index.questions[number]).argmax()]]
            repeated.setdefault(number, {}).setdefault(part.kind, source)
    return repeated
