"""Rows of equal length to train on, made of documents that do not see each other.

    row 0   <start> a document that fills the row and goes on … ─┐ the last token of a piece is the first
    row 1 ┌─ … of the next, so that every token is learned once; │ of the next
    row 1 └ here it ends <end> │ <start> a short one <end> │ <start> another <end> │ padding

A document longer than a row goes on in the next; what is left of it shares a row with others. A prompt with its
completion, or a conversation, is never spread: what does not fit is cut off at the end, and counted. Rows are filled
by best fit, longest first, so that little is padding. Each piece counts its positions from 0, by which the model
is told them apart (`train.isolation`).
"""

import hashlib
from array import array
from bisect import bisect_left, insort
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from tsugiki.data.store import TokenStore
from tsugiki.errors import TsugikiError, summarise_list
from tsugiki.labels import IGNORE_INDEX

Integers: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Segment:
    """A stretch of one record's tokens in a row: from `start` in the store, `length` of them."""

    start: int
    length: int
    record: int
    first: bool
    """Whether the record begins here."""
    last: bool
    """Whether it ends here."""


@dataclass(frozen=True, eq=False)
class Blocks(Dataset[dict[str, Tensor]]):
    """Rows to train on: `input_ids`, `labels`, `position_ids`, each int64 [block_size] when read."""

    store: TokenStore
    block_size: int
    pad: int
    """The token that fills up a row; never learned."""
    pieces: Integers
    """[pieces, 5]: the fields of `Segment`, in the order of the rows."""
    rows: Integers
    """[rows + 1]: row i has the pieces from rows[i] to rows[i + 1]."""
    target_tokens: int
    """Tokens learned in one pass."""
    cut_tokens: int
    """Tokens of prompts and conversations that did not fit and are left out."""
    cut_records: int
    """Prompts and conversations that lost tokens."""
    split_records: int
    """Documents that go on in another row."""

    def __len__(self) -> int:
        return len(self.rows) - 1

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        ids = torch.full((self.block_size,), self.pad)
        labels = torch.full((self.block_size,), IGNORE_INDEX)
        positions = torch.zeros(self.block_size, dtype=torch.int64)
        filled = 0
        for piece in self.row(index):
            here = slice(filled, filled + piece.length)
            there = slice(piece.start, piece.start + piece.length)
            ids[here] = torch.from_numpy(self.store.ids[there].astype(np.int64))
            learned = torch.from_numpy(self.store.learned[there].copy())
            learned[0] = False  # what stands before it is another document's, or nothing
            labels[here] = torch.where(learned, ids[here], IGNORE_INDEX)
            positions[here] = torch.arange(piece.length)
            filled += piece.length
        positions[filled:] = torch.arange(self.block_size - filled)
        return {"input_ids": ids, "labels": labels, "position_ids": positions}

    def row(self, index: int) -> list[Segment]:
        """What row `index` is made of."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        fields = self.pieces[self.rows[index] : self.rows[index + 1]].tolist()
        return [
            Segment(start, length, record, bool(first), bool(last)) for start, length, record, first, last in fields
        ]

    @property
    def tokens(self) -> int:
        """All tokens but padding."""
        return int(self.pieces[:, 1].sum())

    def fingerprint(self) -> str:
        """`sha256:` and 64 digits over everything that `__getitem__` can give, in order."""
        digest = hashlib.sha256(repr((self.block_size, self.pad)).encode())
        digest.update(self.rows.tobytes())
        for start, length in self.pieces[:, :2].tolist():
            digest.update(self.store.ids[start : start + length].astype("<i4").tobytes())
            digest.update(self.store.learned[start : start + length].tobytes())
        return f"sha256:{digest.hexdigest()}"


def pack(store: TokenStore, records: Integers, block_size: int, pad: int, share_rows: bool = True) -> Blocks:
    """Rows of `block_size` tokens that hold these records (see the module's text).

    Args:
        store: the tokens.
        records: numbers of the records to take.
        block_size: tokens a row, 2 or more.
        pad: the token that fills up a row.
        share_rows: put several records into a row; else each piece has its own.

    Raises:
        TsugikiError: prompts so long that nothing of their answers is left in a row; the message names them.
    """
    flat = array("q")  # the fields of `Segment`, one after another: objects would take too much memory
    cut_tokens = cut_records = split_records = target_tokens = 0
    unlearnable: list[str] = []
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
            learned = int(store.learned[start + 1 : start + length].sum())
            target_tokens += learned
            if not learned:
                unlearnable.append(store.index.sources[record])
    if unlearnable:
        raise TsugikiError(
            f"{summarise_list(unlearnable)}: the prompt alone fills a block of {block_size} tokens, and nothing is "
            "left to learn; choose a larger --block-size, or shorten or remove it"
        )
    pieces = np.array(flat, np.int64).reshape(-1, 5)
    rows = best_fit(pieces[:, 1].tolist(), block_size) if share_rows else [[number] for number in range(len(pieces))]
    return Blocks(
        store=store,
        block_size=block_size,
        pad=pad,
        pieces=pieces[[number for row in rows for number in row]],
        rows=np.cumsum([0, *map(len, rows)], dtype=np.int64),
        target_tokens=target_tokens,
        cut_tokens=cut_tokens,
        cut_records=cut_records,
        split_records=split_records,
    )


def best_fit(lengths: list[int], capacity: int) -> list[list[int]]:
    """Numbers of the items in each bin, by best fit, longest first: an item goes where it leaves the least room.

    Args:
        lengths: of the items, each at most `capacity`.
        capacity: of a bin.
    """
    bins: list[list[int]] = []
    open_bins: dict[int, list[int]] = {}  # room left -> bins
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
