"""Windows: pieces of text with the same number of characters for every tokenizer, which are scored one by one."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from tsugiki.data.corpus import Part, numbered
from tsugiki.data.duplicates import near_duplicates
from tsugiki.data.overlap import Kind, ScoredTexts
from tsugiki.data.read.files import Data, read_records
from tsugiki.data.read.schemas import NO_COLUMNS, Columns
from tsugiki.data.records import Document, Reading, Record
from tsugiki.data.splits import kept_together
from tsugiki.data.store import read_index

WINDOW_CHARACTERS = 512
"""Characters (code points) per window."""
T = TypeVar("T")


@dataclass(frozen=True)
class Window:
    """A text that is scored at once: a window of a document, or a whole prompt or conversation with its answers."""

    record: Record
    """The window as a record."""
    document: int
    """Index of its record in the data."""
    group: int | None = None
    """Index of the first record of its group (see `kept_together`); None: it is in no group."""


def evenly_spread(items: Sequence[T], count: int) -> list[T]:
    """Return `count` of the items, evenly spread, or all if there are no more."""
    if count >= len(items):
        return list(items)
    return [items[number * len(items) // count] for number in range(count)]


def read_windows(
    data: Data, limit: int | None = None, columns: Columns = NO_COLUMNS, reading: Reading | None = None
) -> list[Window]:
    """Read records with `read_records`, and split them into windows (see `split_windows`)."""
    records = list(read_records(data, columns, reading))
    index = read_index(records)
    groups = kept_together(index, near_duplicates(index.signatures))
    return split_windows(records, index.characters.tolist(), limit, groups)


def split_windows(
    records: Iterable[Record],
    characters: Sequence[int],
    limit: int | None = None,
    groups: Sequence[Sequence[int]] = (),
) -> list[Window]:
    """Split documents into windows of `WINDOW_CHARACTERS` characters, the last one shorter; keep other records whole.

    `characters` has the number of characters of each record, and `limit` is about that to return, in windows spread
    evenly over all records (None: all). `groups` are those of `kept_together`, by indices in `records`.
    """
    choice = WindowChoice(characters, limit, groups)
    for record in records:
        choice.add(record)
    return choice.windows


def read_scored(parts: Mapping[Kind, Part], limits: Mapping[Kind, int]) -> tuple[dict[Kind, list[Window]], ScoredTexts]:
    """Read all text that is scored, each corpus once; return the windows of each part, and what may not be repeated.

    `limits` are the approximate numbers of characters to score. Windows number the records of their part.
    """
    scored, choices = ScoredTexts(), dict[Kind, WindowChoice]()
    places = {kind: {row: place for place, row in enumerate(part.rows.tolist())} for kind, part in parts.items()}
    for kind, (corpus, rows, _left_out) in parts.items():
        together = corpus.together()
        groups = [[places[kind][row] for row in group if row in places[kind]] for group in together]
        choices[kind] = WindowChoice(corpus.index.characters[rows].tolist(), limits[kind], groups)
    for corpus in {id(part.corpus): part.corpus for part in parts.values() if len(part.rows)}.values():
        inside = [kind for kind, part in parts.items() if part.corpus is corpus]
        for numbers, batch in numbered(corpus.read()):
            for kind in inside:
                chosen = [record for number, record in zip(numbers, batch, strict=True) if number in places[kind]]
                for record in chosen:
                    choices[kind].add(record)
                scored.add(kind, chosen)
    return {kind: choice.windows for kind, choice in choices.items()}, scored


class WindowChoice:
    """Chooses the windows of records that are added one after another; arguments as for `split_windows`."""

    def __init__(
        self, characters: Sequence[int], limit: int | None = None, groups: Sequence[Sequence[int]] = ()
    ) -> None:
        """Begin without a record."""
        self.windows: list[Window] = []
        self._group_of = {number: min(group) for group in groups if len(group) > 1 for number in group}
        self._total = sum(characters)
        self._every = limit if limit is not None and limit < self._total else self._total
        self._records = self._seen = 0

    def add(self, record: Record) -> None:
        """Add the windows of the next record."""
        for part in _split(record):
            seen, self._seen = self._seen, self._seen + 1
            if seen * self._every // self._total != (seen - 1) * self._every // self._total:  # passes an integer
                self.windows.append(Window(part, self._records, self._group_of.get(self._records)))
        self._records += 1


def in_turns(windows: Sequence[Window]) -> list[Window]:
    """Return windows of documents in an order in which the first ones, of any number, are from many documents.

    Each is numbered as a document of its own, so that a look has the score of every window; those of one document (or
    of its near-duplicates) are a group.
    """
    seen: dict[int, int] = {}
    turns = []
    for window in windows:
        group = window.document if window.group is None else window.group
        seen[group] = seen.get(group, -1) + 1
        turns.append((seen[group], window, group))
    ordered = sorted(turns, key=lambda turn: turn[0])  # stable: in each turn the documents keep their order
    return [Window(window.record, number, group) for number, (_turn, window, group) in enumerate(ordered)]


def _split(record: Record) -> list[Record]:
    """Return the windows of a document, without those that are only white space; any other record whole."""
    if not isinstance(record, Document):
        return [record]
    starts = range(0, len(record.text), WINDOW_CHARACTERS)
    texts = [record.text[start : start + WINDOW_CHARACTERS] for start in starts]
    return [Document(text, record.source) for text in texts if text.strip()]
