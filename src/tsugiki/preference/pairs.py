"""Answers to prompts as tokens, and rows that hold the two answers of a pair.

    record 0    <start> prompt │ chosen answer <end>            row 0    records 0 and 1, records 6 and 7, padding
    record 1    <start> prompt │ rejected answer <end>          row 1    records 2 and 3, …

Each answer, with its prompt before it, is a record of a token store and a document of a packed row. So everything that
splits, packs, masks and deals out records works for answers as well, and a row has all that the loss of its pairs
needs. Answers that are marked good or bad are single records. In a model that can (`fast.shares_prompts`), the two
answers of a pair follow one copy of the prompt, so that it is computed once:

    row 0    <start> prompt │ chosen answer <end> │ rejected answer <end> │ the next pair, …

Prompt and answer are encoded together, and the prompt has the tokens that it has in generation (`data.encoding`). The
answers begin where both agree with these tokens; a pair in which they do not agree is refused. Two texts without a
prompt agree as far as their tokens do.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from tsugiki.annotations import PreTrainedTokenizerBase
from tsugiki.data.blocks import Blocks, Integers, best_fit
from tsugiki.data.duplicates import join_groups, near_duplicates
from tsugiki.data.read.answers import ANSWER, read_answers
from tsugiki.data.read.files import Data, content_key
from tsugiki.data.read.schemas import NO_COLUMNS, Columns
from tsugiki.data.records import Reading
from tsugiki.data.store import TokenStore, open_store
from tsugiki.errors import TsugikiError, summarise_list
from tsugiki.fast.loss import AnswerTokens
from tsugiki.language import _, counts, marked

_SAME = marked("{examples} left out, because both answers have the same tokens: {names}")
_NOTHING = marked("{examples} left out, because an answer has no tokens but its end: {names}")
_PROMPTS = marked("{examples} left out, because the answers of a pair do not follow the same prompt: {names}")
_TOO_LONG = marked(
    "{examples} left out, because a row of {size:,} tokens does not hold both prompts and answers: {names}"
)

_OPPOSED = marked("{examples} contradict each other, because what one of them chooses another one rejects: {names}")


@dataclass(frozen=True, eq=False)
class Preferences:
    """Answers as records of a token store: pairs, or single answers that are good or bad."""

    store: TokenStore
    """The loss mask is True for the tokens of answers, and a record is never divided among rows."""
    good: npt.NDArray[np.bool_]
    """[records]: whether an answer is chosen or good. Of a pair, the chosen answer is the first record."""
    size: int
    """Records that belong together: 2 for pairs, 1 for single answers."""
    usable: Integers
    """The first record of each pair that can be learned, or each such single answer."""
    notes: list[str]
    """How the files were read, and what is left out and why, one sentence each."""

    def groups(self) -> list[list[int]]:
        """Return groups of records that must stay on one side of a split (`data.splits`), sorted.

        These are the two answers of a pair, and near-duplicates.
        """
        count = len(self.store.index)
        pairs = ([first, first + 1] for first in range(0, count, 2) if self.size == 2)
        return join_groups(count, [*near_duplicates(self.store.index.signatures), *pairs])


@dataclass(frozen=True, eq=False)
class AnswerRows:
    """Answers, packed into rows."""

    preferences: Preferences
    blocks: Blocks
    apart: bool = False
    """Whether the model computes each document of a row in a row of its own."""

    def records(self, rows: Sequence[int]) -> list[int]:
        """Return the records of the answers in some rows, in their order."""
        return [segment.record for row in rows for segment in self.blocks.row(row)]

    def lengths(self, rows: Sequence[int]) -> list[int]:
        """Return the number of tokens in the loss of each answer in some rows, in the order of `records`."""
        mask = self.preferences.store.loss_mask
        return [int(mask[segment.predicted].sum()) for row in rows for segment in self.blocks.row(row)]

    def tokens(self, rows: Sequence[int]) -> AnswerTokens:
        """Return the tokens of the answers in a batch of these rows."""
        items = self.blocks.items(rows, self.apart)
        labels, positions = (torch.stack([item[name] for item in items]) for name in ("labels", "position_ids"))
        return AnswerTokens.find(labels, positions)


def open_preferences(
    data: Data, tokenizer: PreTrainedTokenizerBase, cache: Path, columns: Columns = NO_COLUMNS
) -> Preferences:
    """Read and tokenise answers, or take their tokens from the folder `cache`; `data` and `columns`: `read_records`."""
    reading = Reading()
    key = f"answers\0{content_key(data, columns)}"  # the same file can be data for training on texts
    store = open_store(read_answers(data, columns, reading), key, tokenizer, "all", cache, reading=reading)
    kinds = [fields[ANSWER] for fields in store.index.fields]
    paired = np.isin(kinds, ["chosen", "rejected"])
    if paired.any() and not paired.all():
        message = _("{name} is one of two answers, but {other} is an answer with a label; use them in separate runs")
        name, other = (store.index.sources[int(kind.argmax())] for kind in (paired, ~paired))
        raise TsugikiError(message.format(name=name, other=other))
    size = 2 if paired.any() else 1
    store, refused = _find_answers(store, size)
    left_out = {first for firsts in refused.values() for first in firsts}
    usable = np.array([first for first in range(0, len(kinds), size) if first not in left_out], np.int64)
    notes = [_note(store, why, firsts, 0) for why, firsts in refused.items()]
    if size == 2 and (opposed := _opposed(store, usable)):
        notes.append(_note(store, _OPPOSED, opposed, 0))
    if not len(usable):
        raise TsugikiError(_("nothing of the data can be learned: {why}").format(why="; ".join(notes)))
    good = np.isin(kinds, ["chosen", "good"])
    return Preferences(store, good, size, usable, [*store.reading.notes(), *notes])


def _opposed(store: TokenStore, firsts: Integers) -> list[int]:
    """Return the pairs whose two answers another pair chooses the other way round, by their first records."""
    digests = [digest.tobytes() for digest in store.index.digests]
    chosen = {(digests[first], digests[first + 1]) for first in firsts}
    return [first for first in firsts.tolist() if (digests[first + 1], digests[first]) in chosen]


def _find_answers(store: TokenStore, size: int) -> tuple[TokenStore, dict[str, list[int]]]:
    """Find where the answers begin; return the store with them, and what cannot be learned by the reason."""
    mask, refused = store.loss_mask.copy(), dict[str, list[int]]()
    for first in range(0, len(store.index), size):
        spans = [slice(store.offsets[record], store.offsets[record + 1]) for record in range(first, first + size)]
        ids, learned = [store.ids[span] for span in spans], [mask[span] for span in spans]
        shortest = min(map(len, ids))
        different = np.flatnonzero(ids[0][:shortest] != ids[-1][:shortest])
        common = int(different[0]) if len(different) else shortest
        if store.index.splittable[first] and size == 2:  # two texts without a prompt
            for part in learned:
                part[:common] = False
        if size == 2 and len(ids[0]) == len(ids[1]) == common:
            refused.setdefault(_SAME, []).append(first)
        elif min(part.sum() for part in learned) < 2:
            refused.setdefault(_NOTHING, []).append(first)
        elif size == 2 and common < max(part.argmax() for part in learned):
            refused.setdefault(_PROMPTS, []).append(first)
    questions = store.index.questions.copy()
    if size == 2:
        questions[1::2] = 0  # a pair asks once
    none = np.zeros(len(store.index), np.bool_)
    index = replace(store.index, splittable=none, questions=questions, answers=none.astype(np.uint64))
    return replace(store, loss_mask=mask, index=index, digest=""), refused


def pack_preferences(
    preferences: Preferences, firsts: Integers, block_size: int, pad: int, share_prompts: bool = False
) -> tuple[Blocks, Integers, list[str]]:
    """Pack pairs, or single answers, into rows by best fit; the two answers of a pair share a row.

    `firsts` are some of `preferences.usable`. Returns the rows, the pairs that do not fit into a row of `block_size`
    tokens, and a note on these. The row `i` of the result has the records `[one.record for one in blocks.row(i)]`.
    With `share_prompts`, the prompt of a pair is in its row once; `fast.shares_prompts` says which models allow that.
    """
    store, size = preferences.store, preferences.size
    prompts = np.zeros(len(store.offsets) - 1, np.int32)  # tokens of each record that are not repeated in its row
    if share_prompts and size == 2:
        prompts[firsts + 1] = [_prompt_length(store, first) for first in firsts]
    lengths = np.diff(store.offsets).astype(np.int32) - prompts
    tokens = lengths[firsts[:, None] + np.arange(size)].sum(1)
    fits = tokens <= block_size
    too_long = firsts[~fits]
    if not fits.any():
        message = _("nothing of the data fits into a row of {size:,} tokens; choose a larger {flag:block_size}")
        raise TsugikiError(message.format(size=block_size))
    order, rows = best_fit(tokens[fits].astype(np.int32), block_size)
    records = (firsts[fits][order][:, None] + np.arange(size)).ravel()
    blocks = Blocks(
        store=store,
        block_size=block_size,
        pad=pad,
        starts=store.offsets[records] + prompts[records],
        lengths=lengths[records],
        rows=rows * size,
        target_tokens=sum(int(store.loss_mask[store.offsets[one] : store.offsets[one + 1]].sum()) for one in records),
        cut_tokens=0,
        cut_records=0,
        split_records=0,
        prompts=prompts[records] if prompts.any() else None,
    )
    return blocks, too_long, [_note(store, _TOO_LONG, too_long.tolist(), block_size)] if len(too_long) else []


def _prompt_length(store: TokenStore, first: int) -> int:
    """Return how many tokens the two answers of a pair, which have the same tokens up to there, follow."""
    spans = (slice(store.offsets[record], store.offsets[record + 1]) for record in (first, first + 1))
    return min(int(store.loss_mask[span].argmax()) for span in spans)


def _note(store: TokenStore, why: str, firsts: list[int], size: int) -> str:
    """Return the sentence on what is left out, with the file and the line of each row."""
    names = [store.index.sources[first].rpartition(" (")[0] for first in firsts]
    return _(why).format(examples=counts.examples(len(names)), names=summarise_list(names), size=size)
