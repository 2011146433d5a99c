"""Answers to prompts as tokens, and rows that hold the two answers of a pair.

    pair 0    <start> prompt │ chosen answer <end>            block 0    pair 0, pair 3, padding
              <start> prompt │ rejected answer <end>          block 1    pair 1, …

A pair is one row of the data, with two records of a token store: each answer, with its prompt before it. It is divided
into training and held-out data as any other row. In a packed block each answer is a document, so masks and batches are
those of texts, and a block has all that the loss of its pairs needs. Answers that are marked good or bad are rows with
one record. In a model that can (`fast.shares_prompts`), the two answers of a pair follow one copy of the prompt, so
that it is computed once:

    block 0    <start> prompt │ chosen answer <end> │ rejected answer <end> │ the next pair, …

Prompt and answer are encoded together, and the prompt has the tokens that it has in generation (`data.encoding`). The
answers begin where both agree with these tokens; a pair in which they do not agree is refused. Two texts without a
prompt agree as far as their tokens do.
"""

from collections.abc import Mapping, Sequence
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
from tsugiki.data.store import DIGEST_BYTES, RecordIndex, TokenStore, open_store
from tsugiki.errors import TsugikiError, summarise_list
from tsugiki.fast.loss import AnswerTokens
from tsugiki.language import _, counts, marked

_SAME = marked("{examples} left out, because both answers have the same tokens: {names}")
_NOTHING = marked("{examples} left out, because an answer has no tokens but its end: {names}")
_PROMPTS = marked("{examples} left out, because the answers of a pair do not follow the same prompt: {names}")
TOO_LONG = marked(
    "{examples} left out, because a row of {size:,} tokens does not hold both prompts and answers: {names}"
)
"""For `Preferences.note`: rows that `pack_preferences` left out."""

_OPPOSED = marked("{examples} contradict each other, because what one of them chooses another one rejects: {names}")


@dataclass(frozen=True, eq=False)
class Preferences:
    """Answers, one row a pair, or a single answer that is good or bad."""

    store: TokenStore
    """One record a row, or two of a pair, the chosen answer first. The loss mask is True for the tokens of answers, and
    a record is never divided among rows of a batch."""
    index: RecordIndex
    """One entry a row; of a pair, that of its chosen answer, with the characters of both answers."""
    good: npt.NDArray[np.bool_]
    """[records]: whether an answer is chosen or good."""
    size: int
    """Records of a row: 2 for pairs, 1 for single answers."""
    usable: Integers
    """The rows that can be learned."""
    refused: Mapping[str, list[int]]
    """Why rows cannot be learned, or contradict others -> these rows."""

    def is_good(self, rows: Integers) -> npt.NDArray[np.bool_]:
        """Return whether rows are pairs or good answers, and not single bad ones."""
        return self.good[rows * self.size]

    def groups(self) -> list[list[int]]:
        """Return groups of rows that have near-duplicates among their answers, sorted."""
        near = near_duplicates(self.store.index.signatures)
        return join_groups(len(self.index), [[record // self.size for record in group] for group in near])

    def notes(self) -> list[str]:
        """Return how the files were read, and what is left out and why, one sentence each."""
        return [*self.store.reading.notes(), *(self.note(why, rows) for why, rows in self.refused.items())]

    def note(self, why: str, rows: Sequence[int], size: int = 0) -> str:
        """Return the sentence on some rows, with the file and the line of each."""
        names = [self.index.sources[row].rpartition(" (")[0] for row in rows]
        return _(why, examples=counts.examples(len(names)), names=summarise_list(names), size=size)


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
    index, good = _rows(store.index, size), np.isin(kinds, ["chosen", "good"])
    left_out = [row for rows in refused.values() for row in rows]
    usable = np.setdiff1d(np.arange(len(index)), left_out)
    if size == 2 and (opposed := _opposed(store, usable)):
        refused[_OPPOSED] = opposed
    preferences = Preferences(store, index, good, size, usable, refused)
    if not len(usable):
        why = "; ".join(preferences.note(why, rows) for why, rows in refused.items())
        raise TsugikiError("nothing of the data can be learned: {why}", why=why)
    return preferences


def _rows(index: RecordIndex, size: int) -> RecordIndex:
    """Return an index with an entry for each row of answers, from one with an entry for each record."""
    first = slice(None, None, size)
    return replace(
        index,
        characters=index.characters.reshape(-1, size).sum(1),
        digests=index.digests[first],
        signatures=index.signatures[first],
        splittable=index.splittable[first],
        questions=index.questions[first],
        answers=index.answers[first],
        sources=[*index.sources][first],
        fields=[*index.fields][first],
    )


def _opposed(store: TokenStore, rows: Integers) -> list[int]:
    """Return the pairs whose two answers another pair chooses the other way round."""
    answers = [
        (chosen.tobytes(), rejected.tobytes())
        for chosen, rejected in store.index.digests.reshape(-1, 2, DIGEST_BYTES)[rows]
    ]
    chosen = {*answers}
    return [row for row, (one, other) in zip(rows.tolist(), answers, strict=True) if (other, one) in chosen]


def _find_answers(store: TokenStore, size: int) -> tuple[TokenStore, dict[str, list[int]]]:
    """Find where the answers begin; return the store with them, and the rows that cannot be learned by the reason."""
    mask, refused = store.loss_mask.copy(), dict[str, list[int]]()
    for row, records in enumerate(np.arange(len(store.index)).reshape(-1, size)):
        spans = [slice(store.offsets[record], store.offsets[record + 1]) for record in records]
        ids, learned = [store.ids[span] for span in spans], [mask[span] for span in spans]
        shortest = min(map(len, ids))
        different = np.flatnonzero(ids[0][:shortest] != ids[-1][:shortest])
        common = int(different[0]) if len(different) else shortest
        if store.index.splittable[records[0]] and size == 2:  # two texts without a prompt
            for part in learned:
                part[:common] = False
        if size == 2 and len(ids[0]) == len(ids[1]) == common:
            refused.setdefault(_SAME, []).append(row)
        elif min(part.sum() for part in learned) < 2:
            refused.setdefault(_NOTHING, []).append(row)
        elif size == 2 and common < max(part.argmax() for part in learned):
            refused.setdefault(_PROMPTS, []).append(row)
    questions = store.index.questions.copy()
    if size == 2:
        questions[1::2] = 0  # a pair asks once
    none = np.zeros(len(store.index), np.bool_)
    index = replace(store.index, splittable=none, questions=questions, answers=none.astype(np.uint64))
    return replace(store, loss_mask=mask, index=index, digest=""), refused


def pack_preferences(
    preferences: Preferences, rows: Integers, block_size: int, pad: int, share_prompts: bool = False
) -> tuple[Blocks, Integers]:
    """Pack pairs, or single answers, into blocks by best fit; the two answers of a pair are in one block.

    `rows` are some of `preferences.usable`. Returns the blocks, and the rows that do not fit into `block_size` tokens.
    The block `i` of the result has the records `[one.record for one in blocks.row(i)]`. With `share_prompts`, the
    prompt of a pair is in its block once; `fast.shares_prompts` says which models allow that.
    """
    store, size = preferences.store, preferences.size
    records = rows[:, None] * size + np.arange(size)
    prompts = np.zeros(records.shape, np.int32)  # tokens of each record that are not repeated in its block
    if share_prompts and size == 2:
        prompts[:, 1] = [_prompt_length(store, pair) for pair in records]
    lengths = (store.offsets[records + 1] - store.offsets[records]).astype(np.int32) - prompts
    tokens = lengths.sum(1)
    fits = tokens <= block_size
    if not fits.any():
        raise TsugikiError(
            "nothing of the data fits into a row of {size:,} tokens; choose a larger {flag:block_size}", size=block_size
        )
    order, ends = best_fit(tokens[fits].astype(np.int32), block_size)
    records, prompts, lengths = (values[fits][order].ravel() for values in (records, prompts, lengths))
    blocks = Blocks(
        store=store,
        block_size=block_size,
        pad=pad,
        starts=store.offsets[records] + prompts,
        lengths=lengths,
        rows=ends * size,
        target_tokens=sum(int(store.loss_mask[store.offsets[one] : store.offsets[one + 1]].sum()) for one in records),
        cut_tokens=0,
        cut_records=0,
        split_records=0,
        prompts=prompts if prompts.any() else None,
    )
    return blocks, rows[~fits]


def _prompt_length(store: TokenStore, pair: Integers) -> int:
    """Return how many tokens the two answers of a pair, which have the same tokens up to there, follow."""
    spans = (slice(store.offsets[record], store.offsets[record + 1]) for record in pair)
    return min(int(store.loss_mask[span].argmax()) for span in spans)
