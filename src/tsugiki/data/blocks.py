"""Pack records into training rows of equal length, and choose the rows of each optimiser step.

    row 0   <start> a document that is longer than a row …
    row 1   … and ends here <end> │ <start> a short document <end> │ <start> another one <end> │ padding

A row consists of segments. A document that is longer than a row continues in another one, with the last token repeated
as the first, so that every token is predicted exactly once. If the tokenizer adds a begin token to every text, it takes
the place of the repeated token, because such a base has hardly seen a text without it: the loss of Gemma 3 270M is 1.4
nats higher (docs/training-evidence.md). A completion or a conversation is never split: tokens that do not fit are cut
off at its end and counted. Rows are filled by best fit, longest segments first, to keep padding small. Positions start
at 0 in every segment, so that documents can be masked from each other (`fast.document_masks`). Only the second answer
to a prompt, if it shares the prompt with the first one (`preference.pairs`), starts after it.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tsugiki.data.store import TokenStore
from tsugiki.errors import TsugikiError, summarise_list
from tsugiki.fast.document_masks import DocumentMasking, mask_documents
from tsugiki.io.digests import sha256
from tsugiki.model.context import IGNORE_INDEX

Integers: TypeAlias = npt.NDArray[np.int64]
Lengths: TypeAlias = npt.NDArray[np.int32]

_RECORDS = 1 << 18  # records whose segments are computed at a time, to limit memory


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
    prompt: int = 0
    """How many tokens at the beginning of the segment before it are the prompt of this one as well."""

    @property
    def predicted(self) -> slice:
        """The positions in the store of the tokens that can be predicted: all, or those after a first token."""
        return slice(self.start + (not self.prompt), self.start + self.length)


@dataclass(frozen=True, eq=False)
class Blocks:
    """Training rows. An item has `input_ids`, `labels` and `position_ids`, each int64 [block_size]."""

    store: TokenStore
    block_size: int
    pad: int
    """The padding token; never a label."""
    starts: Integers
    """[segments]: the position of the first token of each segment in the store, in the order of the rows."""
    lengths: Lengths
    """[segments]: the number of tokens of each segment."""
    rows: Integers
    """[rows + 1]: the segments of row i are those from rows[i] to rows[i + 1] - 1."""
    target_tokens: int
    """Tokens that count in the loss, in one epoch."""
    cut_tokens: int
    """Tokens of completions and conversations that did not fit in a row and are cut off."""
    cut_records: int
    """Completions and conversations that were cut off."""
    split_records: int
    """Documents that continue in another row."""
    prompts: Lengths | None = None
    """[segments]: `Segment.prompt`; None: 0 for all."""
    begin: int | None = None
    """The first token of segments that continue a document; None: the last token of the segment before."""

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
            if self.begin is not None and not segment.first and not segment.prompt:
                ids[filled] = self.begin
            loss_mask = torch.from_numpy(self.store.loss_mask[in_store].copy())
            if not segment.prompt:
                loss_mask[0] = False  # the token before it in the row belongs to another document
            labels[in_row] = torch.where(loss_mask, ids[in_row], IGNORE_INDEX)
            positions[in_row] = torch.arange(segment.length) + segment.prompt
            filled += segment.length
        positions[filled:] = torch.arange(self.block_size - filled)
        return {"input_ids": ids, "labels": labels, "position_ids": positions}

    def items(self, rows: Sequence[int], apart: bool = False) -> list[dict[str, Tensor]]:
        """Return the items of some rows without the padding at the end that is common to all of them.

        `apart`: return an item for each document of a row.
        """
        spans: list[tuple[dict[str, Tensor], int, int]] = []
        for row in rows:
            item, ends = self[row], np.cumsum([segment.length for segment in self.row(row)]).tolist()
            bounds = zip([0, *ends[:-1]], ends, strict=True) if apart else [(0, ends[-1])]
            spans += [(item, first, last) for first, last in bounds]
        longest = max(last - first for _item, first, last in spans)
        return [_padded(item, first, last, longest, self.pad) for item, first, last in spans]

    def row(self, index: int) -> list[Segment]:
        """Return the segments of a row."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        here = slice(self.rows[index], self.rows[index + 1])
        offsets = self.store.offsets
        records = np.searchsorted(offsets, self.starts[here], side="right") - 1
        prompts = np.zeros(len(records), np.int32) if self.prompts is None else self.prompts[here]
        columns = (self.starts[here], self.lengths[here], records, offsets[records], offsets[records + 1], prompts)
        return [
            Segment(start, length, record, first=start == begin, last=start + length == end, prompt=prompt)
            for start, length, record, begin, end, prompt in zip(*(one.tolist() for one in columns), strict=True)
        ]

    def row_target_tokens(self, index: int) -> int:
        """Return how many tokens of a row are in the loss."""
        return sum(int(self.store.loss_mask[segment.predicted].sum()) for segment in self.row(index))

    def row_tokens(self, index: int) -> int:
        """Return the number of tokens of a row without padding."""
        return sum(self.lengths[self.rows[index] : self.rows[index + 1]].tolist())

    @property
    def tokens(self) -> int:
        """Number of tokens without padding."""
        return int(self.lengths.sum(dtype=np.int64))

    def fingerprint(self) -> str:
        """Return `sha256:` and 64 hexadecimal digits over everything that determines the items, in order."""
        store = self.store
        tokens = store.digest or sha256([store.ids.astype("<i4").data, store.loss_mask.data])
        parts = (self.rows, self.starts, self.lengths, *([] if self.prompts is None else [self.prompts]))
        arrays = (np.ascontiguousarray(part).data for part in parts)
        begin = () if self.begin is None else (self.begin,)
        return sha256([repr((self.block_size, self.pad, tokens, *begin)).encode(), *arrays])


def _padded(item: dict[str, Tensor], first: int, last: int, length: int, pad: int) -> dict[str, Tensor]:
    """Return the tokens from `first` to `last` - 1 of an item, with padding at the end up to this length."""
    size = last - first
    padding = {
        "input_ids": torch.full((length - size,), pad),
        "labels": torch.full((length - size,), IGNORE_INDEX),
        "position_ids": torch.arange(length - size),
    }
    return {name: torch.cat([tensor[first:last], padding[name]]) for name, tensor in item.items()}


def pack(
    store: TokenStore,
    records: Integers,
    block_size: int,
    pad: int,
    share_rows: bool = True,
    begin: int | None = None,
) -> Blocks:
    """Pack the records with these numbers into rows of `block_size` tokens, at least 2 (see the module's docstring).

    `begin` is the token before segments that continue a document; None: the last token of the segment before. Without
    `share_rows`, each segment has a separate row. Prompts that fill whole rows, so that nothing of their
    completions is left, are an error that names them.
    """
    starts: list[Integers] = []
    lengths: list[Lengths] = []
    cut_tokens = cut_records = split_records = target_tokens = 0
    without_target: list[str] = []
    for first in range(0, len(records), _RECORDS):
        part = records[first : first + _RECORDS]
        splittable = store.index.splittable[part]
        size = store.offsets[part + 1] - store.offsets[part]
        split_records += int((size[splittable] > block_size).sum())
        target_tokens += int(size[splittable].sum()) - int(splittable.sum())
        for record, length in zip(part[~splittable].tolist(), size[~splittable].tolist(), strict=True):
            start, kept = int(store.offsets[record]), min(length, block_size)
            cut_records += kept < length
            cut_tokens += length - kept
            targets = int(np.count_nonzero(store.loss_mask[start + 1 : start + kept]))
            target_tokens += targets
            if not targets:
                without_target.append(store.index.sources[record])
        segments = np.where(splittable, np.maximum(-((1 - size) // (block_size - 1)), 1), 1)
        place = np.arange(segments.sum()) - np.repeat(np.cumsum(segments) - segments, segments)  # in the record
        starts.append(np.repeat(store.offsets[part], segments) + place * (block_size - 1))
        rest = np.repeat(size, segments) - place * (block_size - 1)
        lengths.append(np.minimum(rest, block_size).astype(np.int32))
    if without_target:
        raise TsugikiError(
            "{without_target}: the prompt alone fills a block of {block_size} tokens, so there is nothing to train "
            "on; choose a larger {flag:block_size}, or shorten or remove it",
            without_target=summarise_list(without_target),
            block_size=block_size,
        )
    all_starts, all_lengths = np.concatenate(starts), np.concatenate(lengths)
    del starts, lengths
    if share_rows:
        order, rows = best_fit(all_lengths, block_size)
    else:
        order, rows = np.arange(len(all_lengths)), np.arange(len(all_lengths) + 1)
    return Blocks(
        store=store,
        block_size=block_size,
        pad=pad,
        starts=all_starts[order],
        lengths=all_lengths[order],
        rows=rows,
        target_tokens=target_tokens,
        cut_tokens=cut_tokens,
        cut_records=cut_records,
        split_records=split_records,
        begin=begin,
    )


def best_fit(lengths: Lengths, capacity: int) -> tuple[Integers, Integers]:
    """Distribute items to bins: longest items first, each to the bin where it leaves the least room.

    Of several such bins, the one that was filled last is chosen. All items of one length are distributed together: a
    bin with room for n of them takes n before the next bin is chosen, because it then has the least room. Returns the
    numbers of all items, bin by bin, int64 [items]; and where each bin begins in them, int64 [bins + 1].
    """
    sequence = np.argsort(-lengths, kind="stable")
    bins = np.empty(len(lengths), np.int32)  # the bin of each item, in this sequence
    open_bins: dict[int, list[npt.NDArray[np.int32]]] = {}  # remaining room -> numbers of the bins, the newest last
    rooms: list[int] = []  # the keys of open_bins, sorted
    count = done = 0

    def put_back(numbers: npt.NDArray[np.int32], room: int) -> None:
        if room and len(numbers):
            if room not in open_bins:
                open_bins[room] = []
                insort(rooms, room)
            open_bins[room].append(numbers)

    values, amounts = np.unique(lengths, return_counts=True)
    for length, amount in zip(values[::-1].tolist(), amounts[::-1].tolist(), strict=True):
        end = done + amount
        while done < end:
            place = bisect_left(rooms, length)
            room = rooms[place] if place < len(rooms) else capacity
            each = room // length
            needed = -(-(end - done) // each)
            if place == len(rooms):
                chosen = np.arange(count, count + needed, dtype=np.int32)
                count += needed
            else:
                newest = open_bins[room].pop()
                chosen = newest[::-1][:needed]
                if needed < len(newest):
                    open_bins[room].append(newest[: len(newest) - needed])
                elif not open_bins[room]:
                    del open_bins[room], rooms[place]
            taken = np.repeat(chosen, each)[: end - done]
            bins[done : done + len(taken)] = taken
            done += len(taken)
            last = len(taken) - each * (len(chosen) - 1)  # items in the last bin
            put_back(chosen[:-1], room - each * length)
            put_back(chosen[-1:], room - last * length)
    order = sequence[np.argsort(bins, kind="stable")]
    return order, np.append(0, np.cumsum(np.bincount(bins, minlength=count)))


# The rows of each optimiser step ----------------------------------------------------------------------------
#
# They follow from the seed and the number of the step alone, independent of the machine. Every epoch has a new random
# order of all rows, from the seed and the number of the epoch. A step takes the next `batch_size` rows; the last step
# of an epoch may have fewer.


class Collator:
    """Stacks rows of a dataset into a batch for a model, so that it masks documents from each other.

    `masking` is how the model does it (see `fast.document_masks`). An attention mask has `dtype`, that of the model.
    """

    def __init__(self, masking: DocumentMasking, dtype: torch.dtype = torch.float32) -> None:
        self.masking: DocumentMasking = masking
        self.dtype = dtype

    def __call__(self, rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Stack the rows and add the arguments that mask documents."""
        batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        return mask_documents(batch, self.masking, self.dtype)


@dataclass(frozen=True)
class StepBatches:
    """The rows of every optimiser step of a run. Steps are counted from 0."""

    blocks: Blocks
    collate: Collator
    batch_size: int
    """Rows of an optimiser step, over all processes."""
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Number of optimiser steps in an epoch."""
        return -(-len(self.blocks) // self.batch_size)

    def rows(self, step: int) -> list[int]:
        """Return the indices of the rows of a step, in order."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = _epoch_order(len(self.blocks), self.seed + epoch)
        rows: list[int] = order[place * self.batch_size : (place + 1) * self.batch_size].tolist()
        return rows

    def target_tokens(self, step: int) -> int:
        """Return how many tokens of a step are in the loss."""
        return sum(map(self.blocks.row_target_tokens, self.rows(step)))

    def batch(self, rows: list[int]) -> dict[str, Tensor]:
        """Return the arguments of the model for some rows, and their labels; the first axis of each is the row.

        Padding at the end that is common to all rows is left out. If documents cannot share a row, there is a row for
        each document.
        """
        return self.collate(self.blocks.items(rows, apart=self.collate.masking == "separate_rows"))


@lru_cache(maxsize=2)
def _epoch_order(rows: int, seed: int) -> Tensor:
    """Return the order, int32 [rows]: 4 bytes for each row."""
    return torch.randperm(rows, generator=torch.Generator().manual_seed(seed)).int()


def of_similar_length(lengths: Sequence[int], tokens: int, size: int = 1) -> list[list[int]]:
    """Group rows, whose numbers of tokens are given, by length, the longest rows first; return their indices.

    A group may always have `size` rows, and more if it has at most `tokens` tokens, padding included.
    """
    groups: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):  # a stable order
        count = len(groups[-1]) + 1 if groups else 0
        if groups and (count <= size or count * lengths[groups[-1][0]] <= tokens):
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups
