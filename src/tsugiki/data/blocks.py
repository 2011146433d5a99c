"""Pack records into training rows of equal length.

    row 0   <start> a document that is longer than a row …
    row 1   … and ends here <end> │ <start> a short document <end> │ <start> another one <end> │ padding

A row consists of segments. A document that is longer than a row continues in another row. The last token of a segment
is repeated as the first token of the next one, so that every token is predicted exactly once. The last segment of a
long document shares a row with other documents. A completion or a conversation is never split: tokens that do not fit
are cut off at its end and counted. Rows are filled by best fit, longest segments first, to keep padding small.
Positions start at 0 in every segment, so that documents can be masked from each other (`fast.document_masks`).
"""

from array import array
from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from tsugiki.data.store import TokenStore
from tsugiki.errors import TsugikiError, summarise_list
from tsugiki.io.digests import sha256
from tsugiki.labels import IGNORE_INDEX
from tsugiki.language import _

Integers: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Segment:
    """Consecutive tokens of one record in a row."""

    start: int
    """The position of the first token in the store."""
    length: int
    record: int
    """The number of the record in the store."""
    first: bool
    """Whether the segment is the beginning of its record."""
    last: bool
    """Whether the segment is the end of its record."""


@dataclass(frozen=True, eq=False)
class Blocks(Dataset[dict[str, Tensor]]):
    """Training rows. An item has `input_ids`, `labels` and `position_ids`, each int64 [block_size]."""

    store: TokenStore
    block_size: int
    pad: int
    """The padding token; never a label."""
    segments: Integers
    """[segments, 5]: the fields of `Segment`, in the order of the rows."""
    rows: Integers
    """[rows + 1]: the segments of row i are segments[rows[i] : rows[i + 1]]."""
    target_tokens: int
    """Tokens that count in the loss, in one epoch."""
    cut_tokens: int
    """Tokens of completions and conversations that did not fit in a row and are cut off."""
    cut_records: int
    """Completions and conversations that were cut off."""
    split_records: int
    """Documents that continue in another row."""

    def __len__(self) -> int:
        return len(self.rows) - 1

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        ids = torch.full((self.block_size,), self.pad)
        labels = torch.full((self.block_size,), IGNORE_INDEX)
        positions = torch.zeros(self.block_size, dtype=torch.int64)
        filled = 0
        for segment in self.row(index):
            in_row = slice(filled, filled + segment.length)
            in_store = slice(segment.start, segment.start + segment.length)
            ids[in_row] = torch.from_numpy(self.store.ids[in_store].astype(np.int64))
            loss_mask = torch.from_numpy(self.store.loss_mask[in_store].copy())
            loss_mask[0] = False  # the token before it in the row belongs to another document
            labels[in_row] = torch.where(loss_mask, ids[in_row], IGNORE_INDEX)
            positions[in_row] = torch.arange(segment.length)
            filled += segment.length
        positions[filled:] = torch.arange(self.block_size - filled)
        return {"input_ids": ids, "labels": labels, "position_ids": positions}

    def row(self, index: int) -> list[Segment]:
        """Return the segments of a row."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        fields = self.segments[self.rows[index] : self.rows[index + 1]].tolist()
        return [
            Segment(start, length, record, bool(first), bool(last)) for start, length, record, first, last in fields
        ]

    def row_target_tokens(self, index: int) -> int:
        """Return how many tokens of a row are in the loss."""
        segments = ((segment.start, segment.length) for segment in self.row(index))
        return sum(int(self.store.loss_mask[start + 1 : start + length].sum()) for start, length in segments)

    def row_tokens(self, index: int) -> int:
        """Return the number of tokens of a row without padding."""
        return sum(segment.length for segment in self.row(index))

    @property
    def tokens(self) -> int:
        """Number of tokens without padding."""
        return int(self.segments[:, 1].sum())

    def fingerprint(self) -> str:
        """Return `sha256:` and 64 hexadecimal digits over everything that determines the items, in order."""

        def parts() -> Iterator[bytes]:
            yield repr((self.block_size, self.pad)).encode()
            yield self.rows.tobytes()
            for start, length in self.segments[:, :2].tolist():
                yield self.store.ids[start : start + length].astype("<i4").tobytes()
                yield self.store.loss_mask[start : start + length].tobytes()

        return sha256(parts())


def pack(store: TokenStore, records: Integers, block_size: int, pad: int, share_rows: bool = True) -> Blocks:
    """Pack records into rows of `block_size` tokens (see the module's docstring).

    Args:
        store: the tokens of all records.
        records: the numbers of the records to pack.
        block_size: tokens per row, at least 2.
        pad: the padding token.
        share_rows: whether a row may have several segments; if not, each segment has a separate row.

    Raises:
        TsugikiError: prompts fill whole rows, so that nothing of their completions is left; the message names them.
    """
    flat = array("q")  # the fields of all segments one after another, because objects would use too much memory
    cut_tokens = cut_records = split_records = target_tokens = 0
    without_target: list[str] = []
    for record in records.tolist():
        start, end = store.offsets[record].item(), store.offsets[record + 1].item()
        if store.index.splittable[record]:
            for first in range(start, max(end - 1, start + 1), block_size - 1):
                last = first + block_size >= end
                flat.extend((first, min(block_size, end - first), record, first == start, last))
            split_records += end - start > block_size
            target_tokens += end - start - 1
        else:
            length = min(end - start, block_size)
            flat.extend((start, length, record, True, length == end - start))
            cut_records += length < end - start
            cut_tokens += end - start - length
            targets = int(store.loss_mask[start + 1 : start + length].sum())
            target_tokens += targets
            if not targets:
                without_target.append(store.index.sources[record])
    if without_target:
        raise TsugikiError(
            _(
                "{without_target}: the prompt alone fills a block of {block_size} tokens, so there is nothing to train "
                "on; choose a larger --block-size, or shorten or remove it"
            ).format(without_target=summarise_list(without_target), block_size=block_size)
        )
    segments = np.array(flat, np.int64).reshape(-1, 5)
    alone = [[number] for number in range(len(segments))]
    rows = best_fit(segments[:, 1].tolist(), block_size) if share_rows else alone
    return Blocks(
        store=store,
        block_size=block_size,
        pad=pad,
        segments=segments[[number for row in rows for number in row]],
        rows=np.cumsum([0, *map(len, rows)], dtype=np.int64),
        target_tokens=target_tokens,
        cut_tokens=cut_tokens,
        cut_records=cut_records,
        split_records=split_records,
    )


def best_fit(lengths: list[int], capacity: int) -> list[list[int]]:
    """Distribute items to bins: longest items first, each to the bin where it leaves the least room.

    Each length is at most `capacity`.

    Returns:
        The numbers of the items in each bin.
    """
    bins: list[list[int]] = []
    open_bins: dict[int, list[int]] = {}  # remaining room -> numbers of the bins
    rooms: list[int] = []  # the keys of open_bins, sorted
    for item in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        place = bisect_left(rooms, lengths[item])
        if place == len(rooms):
            room, chosen = capacity, len(bins)
            bins.append([])
        else:
            room = rooms[place]
            chosen = open_bins[room].pop()
            if not open_bins[room]:
                del open_bins[room], rooms[place]
        bins[chosen].append(item)
        room -= lengths[item]
        if room:
            if room not in open_bins:
                open_bins[room] = []
                insort(rooms, room)
            open_bins[room].append(chosen)
    return bins
