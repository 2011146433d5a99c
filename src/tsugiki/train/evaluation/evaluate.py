"""Figures that can be compared: loss, perplexity and bits per character of a model on texts.

The texts are cut into windows of equal characters, whatever the tokenizer, and each window is scored alone, after
the token that begins a document. So every token counts, two models see the same context, nothing sees another
document, and

    loss          = NLL / tokens              (natural logarithm, of this tokenizer's tokens)
    perplexity    = exp(loss)
    bits_per_char = NLL / ln 2 / characters   (the figure to compare models with different tokenizers by)

where NLL is the summed negative log-likelihood of all tokens. A window with more tokens than the model's context
is scored in pieces that fit, each beginning anew. Of a prompt with a completion, or a conversation, what is learned
is what is scored: the answers and their end tokens, given all that stands before them; `characters` are the answers'.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from tsugiki.base.context import context_length
from tsugiki.base.inference import evaluating
from tsugiki.data.encoding import document_start, encode, encode_records
from tsugiki.data.records import AssistantTurns, Document, Record, target_text
from tsugiki.data.sources import read_records
from tsugiki.errors import TsugikiError
from tsugiki.labels import IGNORE_INDEX
from tsugiki.train.evaluation.result import Evaluation, summarise

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WINDOW = 512
"""Characters (code points) a window."""

_LOGIT_BUDGET = 1 << 26  # elements of logits a batch may have: 256 MB in float32


@dataclass(frozen=True)
class Window:
    """What is scored at once: a stretch of a document, or a whole prompt or conversation with its answers."""

    record: Record
    document: int
    """Number of the record that it comes from."""


def read_windows(data: str, limit: int | None = None) -> list[Window]:
    """Read data as in a run's config, and split them into windows (see `split_windows`).

    Raises:
        TsugikiError: the data cannot be read.
    """
    records = list(read_records(data))
    return split_windows(records, [len(record.text) for record in records], limit)


def split_windows(records: Iterable[Record], characters: Sequence[int], limit: int | None = None) -> list[Window]:
    """The records in windows: `WINDOW` characters of a document each (its last is shorter), other records whole.

    Args:
        records: in order; read once, and not held.
        characters: of each record.
        limit: at most about so many characters, in windows spread evenly over all of them.
    """
    total = sum(characters)
    every = limit if limit is not None and limit < total else total
    windows: list[Window] = []
    seen = 0
    for number, record in enumerate(records):
        for stretch in _stretches(record):
            if seen * every // total != (seen - 1) * every // total:  # the running share passes a whole number
                windows.append(Window(stretch, number))
            seen += 1
    return windows


@torch.no_grad()
def evaluate(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    windows: Sequence[Window],
    turns: AssistantTurns = "all",
    advance: Callable[[int], None] = lambda done: None,
    context: int | None = None,
) -> Evaluation:
    """Score windows of text (see the module's text). Leaves the model's mode as it was.

    Args:
        model: a causal language model.
        tokenizer: its own.
        windows: from `split_windows`.
        turns: which of an assistant's turns are scored.
        advance: called with the number of rows done since the last call.
        context: tokens that are scored at once, at most; by default as many as the model takes.

    Raises:
        TsugikiError: there is no text, or none that fits the model's context.
    """
    if not windows:
        raise TsugikiError("there is no text to evaluate on")
    context = context or context_length(model)
    texts = [target_text(window.record, turns) for window in windows]
    encoded = encode(tokenizer, texts)
    rows: list[_Row] = []
    counts: dict[int, list[int]] = {}  # document -> tokens, characters
    split = skipped = 0
    for window, text, ids in zip(windows, texts, encoded, strict=True):
        own = _rows(tokenizer, window, ids, turns, context)
        rows += own
        split += len(own) > 1
        skipped += not own
        if own:
            count = counts.setdefault(window.document, [0, 0])
            count[0] += sum(int(row.loss_mask[1:].sum()) for row in own)
            count[1] += len(text)
    if not rows:
        raise TsugikiError(f"everything to evaluate on is longer than the model's context of {context} tokens")
    nll = _score(model, rows, advance)
    unknown = tokenizer.unk_token_id
    return summarise(
        [(nll[number], tokens, characters) for number, (tokens, characters) in counts.items()],
        windows=len(windows),
        split_windows=split,
        skipped_records=skipped,
        unknown_tokens=0 if unknown is None else sum(ids.count(unknown) for ids in encoded),
        tokenizer_is_lossless=all(
            tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
            for ids, text in zip(encoded, texts, strict=True)
        ),
    )


def _stretches(record: Record) -> list[Record]:
    if not isinstance(record, Document):
        return [record]
    stretches = [record.text[start : start + WINDOW] for start in range(0, len(record.text), WINDOW)]
    return [Document(stretch, record.source) for stretch in stretches if stretch.strip()]


@dataclass(frozen=True, eq=False)
class _Row:
    """Tokens for one forward pass."""

    ids: Tensor
    loss_mask: Tensor
    """Whether to score a token; the first is context alone."""
    document: int


def _rows(
    tokenizer: "PreTrainedTokenizerBase", window: Window, ids: list[int], turns: AssistantTurns, context: int
) -> list[_Row]:
    """The rows of a window, of whose learned text `ids` are the tokens; none where a record cannot be cut to fit."""
    if isinstance(window.record, Document):
        start = document_start(tokenizer)
        pieces = [torch.tensor([start, *ids[first : first + context - 1]]) for first in range(0, len(ids), context - 1)]
        return [_Row(piece, torch.ones(len(piece), dtype=torch.bool), window.document) for piece in pieces]
    encoded = encode_records(tokenizer, [window.record], turns)[0]
    if len(encoded.ids) > context:
        return []
    return [_Row(torch.tensor(encoded.ids), torch.tensor(encoded.loss_mask), window.document)]


def _score(model: "PreTrainedModel", rows: Sequence[_Row], advance: Callable[[int], None]) -> dict[int, float]:
    """Summed NLL of each document, in the model's evaluation mode."""
    total: dict[int, float] = {}
    with evaluating(model):
        for batch in _batches(rows, model.config.get_text_config().vocab_size):
            for row, nll in zip(batch, _nll(model, batch), strict=True):
                total[row.document] = total.get(row.document, 0.0) + nll
            advance(len(batch))
    return total


def _batches(rows: Sequence[_Row], vocabulary: int) -> list[list[_Row]]:
    """Rows of like length together, as many as the budget for their logits allows."""
    batches: list[list[_Row]] = []
    for row in sorted(rows, key=lambda row: len(row.ids), reverse=True):
        if batches and (len(batches[-1]) + 1) * len(batches[-1][0].ids) * vocabulary <= _LOGIT_BUDGET:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def _nll(model: "PreTrainedModel", rows: Sequence[_Row]) -> list[float]:
    """NLL of each row's learned tokens. Rows are padded on the right, which a causal model never sees."""
    ids = torch.nn.utils.rnn.pad_sequence([row.ids for row in rows], batch_first=True).to(model.device)
    labels = torch.full_like(ids, IGNORE_INDEX)
    for label, row in zip(labels, rows, strict=True):
        label[: len(row.ids)] = torch.where(row.loss_mask, row.ids, IGNORE_INDEX)
    lengths = torch.tensor([len(row.ids) for row in rows], device=model.device)
    attended = (torch.arange(ids.shape[1], device=model.device) < lengths[:, None]).long()
    logits = model(input_ids=ids, attention_mask=attended, use_cache=False).logits
    return [
        float(F.cross_entropy(row.float(), label, ignore_index=IGNORE_INDEX, reduction="sum").double())
        for row, label in zip(logits[:, :-1], labels[:, 1:], strict=True)
    ]
