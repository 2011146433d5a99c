"""Rows contain every token once as a label, count what is cut off, and are the same on every run."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from tests.errors import assert_refused
from tests.tiny import store_of
from tsugiki.data import Collator, Segment, StepBatches, best_fit, pack
from tsugiki.model import IGNORE_INDEX


def numbered(lengths: list[int]) -> list[list[int]]:
    """Documents whose tokens are all different."""
    firsts = np.cumsum([1, *lengths]).tolist()
    return [list(range(first, first + length)) for first, length in zip(firsts, lengths, strict=False)]


LENGTHS = [5, 2, 9, 40, 8, 3, 16, 2, 15, 7, 22]


@pytest.mark.parametrize(("block", "share_rows"), [(2, True), (5, True), (8, False), (8, True), (64, True)])
def test_every_token_but_the_first_is_a_label_once_with_its_own_context(block: int, share_rows: bool):
    records = numbered(LENGTHS)
    blocks = pack(store_of(records), np.arange(len(records)), block, pad=0, share_rows=share_rows)
    learned: list[int] = []
    for row in blocks:
        ids, labels, positions = row["input_ids"], row["labels"], row["position_ids"]
        assert ids.shape == labels.shape == positions.shape == (block,)
        assert {tensor.dtype for tensor in row.values()} == {torch.int64}
        assert positions[0] == 0
        for i in range(1, block):
            assert positions[i] in (0, positions[i - 1] + 1)
            if labels[i] != IGNORE_INDEX:
                assert labels[i] == ids[i]
                assert ids[i - 1] == ids[i] - 1, "its own document stands before it"
                assert positions[i] == positions[i - 1] + 1
                learned.append(int(ids[i]))
        assert labels[0] == IGNORE_INDEX
    assert sorted(learned) == sorted(token for record in records for token in record[1:])
    assert blocks.target_tokens == len(learned)
    assert blocks.split_records == sum(length > block for length in LENGTHS)
    if not share_rows:
        assert all(len(blocks.row(i)) == 1 for i in range(len(blocks)))


def test_a_begin_token_stands_before_what_continues_a_document():
    records = numbered(LENGTHS)
    plain, begun = (pack(store_of(records), np.arange(len(records)), 8, pad=0, begin=begin) for begin in (None, 999))
    continued = 0
    for number in range(len(plain)):
        before, after = plain[number], begun[number]
        start, expected = 0, before["input_ids"].clone()
        for segment in plain.row(number):
            if not segment.first:
                expected[start] = 999
                continued += 1
            start += segment.length
        assert after["input_ids"].tolist() == expected.tolist()
        for name in ("labels", "position_ids"):
            assert after[name].equal(before[name])
    assert continued > 10


def test_a_segment_names_its_record_and_whether_it_begins_and_ends_there():
    blocks = pack(store_of(numbered(LENGTHS), prompts={3: 1}), np.arange(1, len(LENGTHS)), 8, pad=0)
    found = sorted((part for row in range(len(blocks)) for part in blocks.row(row)), key=lambda part: part.start)
    first = np.cumsum([0, *LENGTHS]).tolist()
    expected = [
        Segment(
            start, min(8, first[record + 1] - start), record, start == first[record], start + 8 >= first[record + 1]
        )
        for record in range(1, len(LENGTHS))
        for start in range(first[record], max(first[record + 1] - 1, first[record] + 1), 7)
        if record != 3 or start == first[record]
    ]
    assert found == expected


def test_an_example_is_cut_at_its_end_and_counted():
    store = store_of(numbered([6, 12, 4]), prompts={0: 2, 1: 3})
    blocks = pack(store, np.arange(3), 8, pad=0)
    assert (blocks.cut_records, blocks.cut_tokens, blocks.split_records) == (1, 4, 0)
    rows = [row for row in blocks if 7 in row["input_ids"]]
    assert rows[0]["input_ids"].tolist() == list(range(7, 15))
    assert rows[0]["labels"].tolist() == [IGNORE_INDEX] * 3 + list(range(10, 15))
    assert blocks.target_tokens == 4 + 5 + 3


def test_a_prompt_that_fills_the_row_is_an_error():
    store = store_of(numbered([6, 12, 40, 4]), prompts={0: 2, 1: 8, 2: 39})
    assert_refused(r"data:2, data:3: .* 8 tokens.*--block-size", pack, store, np.arange(4), 8, pad=0)
    assert_refused(r"^data:3: ", pack, store, np.arange(4), 9, pad=0)


def bins_of(lengths: list[int], capacity: int) -> list[list[int]]:
    items, rows = best_fit(np.array(lengths, np.int32), capacity)
    return [items[begin:end].tolist() for begin, end in itertools.pairwise(rows)]


def plain_best_fit(lengths: list[int], capacity: int) -> list[list[int]]:
    """One item after another, longest first, to the bin with the least room; of several, to the one filled last."""
    bins: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # room of each bin, and when it was filled last
    for time, item in enumerate(sorted(range(len(lengths)), key=lambda number: -lengths[number])):
        open_bins = [number for number, (room, _) in enumerate(rooms) if room >= lengths[item]]
        chosen = min(open_bins, key=lambda number: (rooms[number][0], -rooms[number][1]), default=len(bins))
        if chosen == len(bins):
            bins.append([])
            rooms.append((capacity, time))
        bins[chosen].append(item)
        rooms[chosen] = (rooms[chosen][0] - lengths[item], time)
    return bins


def test_best_fit_is_that_of_a_plain_loop():
    for seed in range(40):
        generator = np.random.default_rng(seed)
        capacity = int(generator.choice([2, 5, 16, 64, 512]))
        longest = int(generator.choice([1, max(1, capacity // 10), max(1, capacity // 3), capacity]))
        lengths = generator.integers(1, longest + 1, size=int(generator.choice([1, 2, 10, 100, 1000]))).tolist()
        assert bins_of(lengths, capacity) == plain_best_fit(lengths, capacity), seed


def test_the_fingerprint_covers_the_rows():
    records, everything = numbered(LENGTHS), np.arange(len(LENGTHS))

    def fingerprint(records: list[list[int]] = records, chosen: np.ndarray = everything, **given: Any) -> str:
        store = store_of(records, prompts=given.pop("prompts", None))
        return pack(store, chosen, **{"block_size": 16, "pad": 0, **given}).fingerprint()

    found = [
        fingerprint(),
        fingerprint(block_size=17),
        fingerprint(begin=1),
        fingerprint(pad=1),
        fingerprint(chosen=everything[:-1]),
        fingerprint(chosen=everything[::-1]),
        fingerprint(prompts={0: 2}),
        fingerprint([[900, *records[0][1:]], *records[1:]]),
    ]
    assert len(set(found)) == len(found)
    assert fingerprint() == found[0]


def test_every_epoch_has_the_random_order_of_its_seed():
    """So seeded runs give the same results in every version."""
    blocks = pack(store_of([[1, 2, 3]] * 11), np.arange(11), 3, pad=0)
    batches = StepBatches(blocks, Collator("position_ids"), batch_size=4, seed=7)
    for epoch in range(3):
        order = torch.randperm(11, generator=torch.Generator().manual_seed(7 + epoch)).tolist()
        taken = [batches.rows(3 * epoch + step) for step in range(3)]
        assert taken == [order[:4], order[4:8], order[8:]]
