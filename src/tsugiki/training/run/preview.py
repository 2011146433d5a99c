"""Preview a run: its first rows as training sees them, counts, and the estimated time on this machine."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count, groupby, islice
from typing import Literal, TypeAlias

import numpy as np

from tsugiki.annotations import PreTrainedTokenizerBase
from tsugiki.data.blocks import Blocks, Segment
from tsugiki.data.read.files import describe_data
from tsugiki.language import _
from tsugiki.model.context import IGNORE_INDEX
from tsugiki.training.choose.choices import describe_choices
from tsugiki.training.data.packing import PackedDataset
from tsugiki.training.record.run_record import DataSummary
from tsugiki.training.run.stages import prepared
from tsugiki.training.settings.config import RunConfig
from tsugiki.training.step.setup import seconds_per_step

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"

Kind: TypeAlias = Literal["target", "context", "target special", "context special"]


@dataclass(frozen=True)
class Span:
    """Consecutive tokens of one kind, as text."""

    text: str
    kind: Kind


@dataclass(frozen=True)
class SegmentView:
    """A segment of a record in a row."""

    source: str
    tokens: int
    first: bool
    """Whether the segment is the beginning of its record."""
    last: bool
    """Whether the segment is the end of its record."""
    continues: bool
    """Whether the rest of the record, if any, is in another row; otherwise it is cut off."""
    spans: tuple[Span, ...]


@dataclass(frozen=True)
class RowView:
    """A row of a batch."""

    number: int
    """Position in the order of training, from 1."""
    segments: tuple[SegmentView, ...]
    padding: int


class PreviewCounts(DataSummary):
    """The data of a run, and the time that it would take."""

    characters_per_token: float
    longest_record: str
    """Name of the longest record."""
    longest_tokens: int
    """Tokens of the longest record."""
    steps: int
    """Optimiser steps of the run."""
    seconds: float
    """Estimated time of all steps, from one timed step."""


@dataclass(frozen=True, repr=False)
class Preview:
    """The first rows of a run, and counts of all rows."""

    model: str
    data: str
    rows: tuple[RowView, ...]
    counts: PreviewCounts
    notes: tuple[str, ...]

    def __repr__(self) -> str:
        return f"<preview of {self.data} for {self.model}: {self.counts.steps:,} steps>"


def preview(config: RunConfig, rows: int) -> Preview:
    """Prepare a run as `train` would, without training, and show some rows. Only the token cache is written."""
    run = prepared(config)
    loop, data, ready = run.loop(), run.base.data, run.ready
    with run.start.display.stage(_("timing two steps"), 2) as advance:
        seconds = seconds_per_step(loop, advance)
    order = islice((row for step in count() for row in loop.gradients.batches.rows(step)), min(rows, len(data.blocks)))
    views = tuple(view_row(data.blocks, row, number, run.base.tokenizer) for number, row in enumerate(order, 1))
    notes = (*describe_choices(ready.resolved), *data.notes, *ready.notes)
    return Preview(config.model, describe_data(config.data), views, _counts(data, ready.choices.steps, seconds), notes)


def view_row(blocks: Blocks, row: int, number: int, tokenizer: PreTrainedTokenizerBase) -> RowView:
    """Return the row with index `row` as text; `number` is its position in the order of training.

    An answer that shares the prompt of the one before it is shown with the prompt.
    """
    item = blocks[row]
    views, filled, before = [], 0, 0
    for segment in blocks.row(row):
        here, prompt = slice(filled, filled + segment.length), slice(before, before + segment.prompt)
        ids, labels = (item[name][prompt].tolist() + item[name][here].tolist() for name in ("input_ids", "labels"))
        spans = tuple(_spans(ids, labels, tokenizer))
        views.append(_view(blocks, segment, spans))
        before, filled = filled, filled + segment.length
    return RowView(number, tuple(views), blocks.block_size - filled)


def _view(blocks: Blocks, segment: Segment, spans: tuple[Span, ...]) -> SegmentView:
    index = blocks.store.index
    continues = bool(index.splittable[segment.record])
    first = segment.first or segment.prompt > 0
    if not first:
        spans = _without_half_characters(spans)
    if not segment.last:
        spans = _without_half_characters(spans[::-1])[::-1]
    name = index.name(segment.record)
    return SegmentView(name, segment.prompt + segment.length, first, segment.last, continues, spans)


def _without_half_characters(spans: tuple[Span, ...]) -> tuple[Span, ...]:
    """Remove the bytes at the start or the end of a row that are only a part of a character."""
    for number, span in enumerate(spans):
        text = span.text.strip(_INCOMPLETE)
        if text:
            return (*spans[:number], replace(span, text=text), *spans[number + 1 :])
        spans = (*spans[:number], replace(span, text=""), *spans[number + 1 :])
    return spans


def _spans(ids: list[int], labels: list[int], tokenizer: PreTrainedTokenizerBase) -> Iterator[Span]:
    special = set(tokenizer.all_special_ids) | {
        number for number, token in tokenizer.added_tokens_decoder.items() if token.special
    }

    def kind(pair: tuple[int, int]) -> Kind:
        token, label = pair
        if token in special:
            return "context special" if label == IGNORE_INDEX else "target special"
        return "context" if label == IGNORE_INDEX else "target"

    for span_kind, pairs in groupby(zip(ids, labels, strict=True), key=kind):
        yield Span(tokenizer.decode([token for token, _ in pairs], clean_up_tokenization_spaces=False), span_kind)


def _counts(data: PackedDataset, steps: int, seconds_per_step: float) -> PreviewCounts:
    blocks = data.blocks
    index, offsets = blocks.store.index, blocks.store.offsets
    records = np.unique(np.searchsorted(offsets, blocks.starts, side="right") - 1)  # that are trained on
    lengths = offsets[records + 1] - offsets[records]
    longest = int(lengths.argmax())
    return PreviewCounts(
        **dict(data.summary),
        characters_per_token=float(index.characters[records].sum() / lengths.sum()),
        longest_record=index.name(int(records[longest])),
        longest_tokens=int(lengths[longest]),
        steps=steps,
        seconds=steps * seconds_per_step,
    )
