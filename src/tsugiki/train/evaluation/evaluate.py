"""Evaluate a model on texts: loss, perplexity and bits per character.

The texts are split into windows with the same number of characters for every tokenizer. Each window is scored alone,
after the token that begins a document. So every token counts, two models see the same context, no window sees another
document, and

    loss          = NLL / tokens              (natural logarithm; depends on the tokenizer)
    perplexity    = exp(loss)
    bits_per_char = NLL / ln 2 / characters   (compares models with different tokenizers)

where NLL is the summed negative log-likelihood of all tokens. A window with more tokens than the model's context is
scored in pieces that fit, without context from the previous piece. In a prompt with a completion, or in a conversation,
the target tokens of training are scored: the answers and their end tokens, given everything before them. `characters`
counts the answers only.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from accelerate.utils import gather_object
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
from tsugiki.train.sharding import is_sharded

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WINDOW_CHARACTERS = 512
"""Characters (code points) per window."""

_LOGIT_BUDGET = 1 << 26  # largest number of logits in a batch: 256 MB in float32


@dataclass(frozen=True)
class Window:
    """A text that is scored at once: a window of a document, or a whole prompt or conversation with its answers."""

    record: Record
    """The window as a record."""
    document: int
    """Index of the record that it is from."""


def read_windows(data: str, limit: int | None = None) -> list[Window]:
    """Read data as in a run's config, and split them into windows (see `split_windows`).

    Raises:
        TsugikiError: the data cannot be read.
    """
    records = list(read_records(data))
    return split_windows(records, [len(record.text) for record in records], limit)


def split_windows(records: Iterable[Record], characters: Sequence[int], limit: int | None = None) -> list[Window]:
    """Split documents into windows of `WINDOW_CHARACTERS` characters, the last one shorter; keep other records whole.

    Args:
        records: the records in order; they are read once.
        characters: the number of characters of each record.
        limit: approximate number of characters to return, in windows spread evenly over all records; None: all.
    """
    total = sum(characters)
    every = limit if limit is not None and limit < total else total
    windows: list[Window] = []
    seen = 0
    for number, record in enumerate(records):
        for part in _split(record):
            if seen * every // total != (seen - 1) * every // total:  # the share passes the next integer
                windows.append(Window(part, number))
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
    accelerator: "Accelerator | None" = None,
) -> Evaluation:
    """Score windows of text as the module docstring describes. The model's training mode is restored afterwards.

    Args:
        model: a causal language model.
        tokenizer: the model's tokenizer.
        windows: the text, from `split_windows`.
        turns: which answers of a conversation are scored.
        advance: called with the number of sequences done since the last call.
        context: largest number of tokens in one forward pass; None: the model's context.
        accelerator: the processes that share the work, each with the same arguments; None: this process alone. Every
            process gets the result for all windows.

    Raises:
        TsugikiError: there is no text, or all of it is longer than the model's context.
    """
    if not windows:
        raise TsugikiError("there is no text to evaluate on")
    context = context or context_length(model)
    texts = [target_text(window.record, turns) for window in windows]
    encoded = encode(tokenizer, texts)
    sequences: list[_Sequence] = []
    counts: dict[int, list[int]] = {}  # document -> tokens, characters
    split = skipped = 0
    for window, text, ids in zip(windows, texts, encoded, strict=True):
        parts = _sequences(tokenizer, window, ids, turns, context)
        sequences += parts
        split += len(parts) > 1
        skipped += not parts
        if parts:
            count = counts.setdefault(window.document, [0, 0])
            count[0] += sum(int(part.loss_mask[1:].sum()) for part in parts)
            count[1] += len(text)
    if not sequences:
        raise TsugikiError(f"everything to evaluate on is longer than the model's context of {context} tokens")
    nll = _score(model, sequences, advance, accelerator)
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


def _split(record: Record) -> list[Record]:
    """Return the windows of a document, without those that are only white space; any other record whole."""
    if not isinstance(record, Document):
        return [record]
    starts = range(0, len(record.text), WINDOW_CHARACTERS)
    texts = [record.text[start : start + WINDOW_CHARACTERS] for start in starts]
    return [Document(text, record.source) for text in texts if text.strip()]


@dataclass(frozen=True, eq=False)
class _Sequence:
    """Tokens that are scored in one forward pass."""

    ids: Tensor
    """Token ids [length]."""
    loss_mask: Tensor
    """Whether each token is scored [length]. The first token has no prediction and never is."""
    document: int
    """Index of the record that the tokens are from."""


def _sequences(
    tokenizer: "PreTrainedTokenizerBase", window: Window, ids: list[int], turns: AssistantTurns, context: int
) -> list[_Sequence]:
    """Return the sequences of a window.

    Args:
        tokenizer: the model's tokenizer.
        window: a text.
        ids: the tokens of its target text.
        turns: which answers of a conversation are scored.
        context: largest length of a sequence.

    Returns:
        Several sequences for a document that is longer than `context`, none for another record that is.
    """
    if isinstance(window.record, Document):
        start = document_start(tokenizer)
        pieces = [torch.tensor([start, *ids[first : first + context - 1]]) for first in range(0, len(ids), context - 1)]
        return [_Sequence(piece, torch.ones(len(piece), dtype=torch.bool), window.document) for piece in pieces]
    encoded = encode_records(tokenizer, [window.record], turns)[0]
    if len(encoded.ids) > context:
        return []
    return [_Sequence(torch.tensor(encoded.ids), torch.tensor(encoded.loss_mask), window.document)]


def _score(
    model: "PreTrainedModel",
    sequences: Sequence[_Sequence],
    advance: Callable[[int], None],
    accelerator: "Accelerator | None",
) -> dict[int, float]:
    """Return document -> summed NLL in nats, with the model in evaluation mode."""
    index, count = (0, 1) if accelerator is None else (accelerator.process_index, accelerator.num_processes)
    mine: list[tuple[int, float]] = []  # document and NLL of each sequence of this process
    batches = _batches(sequences, model.config.get_text_config().vocab_size)
    with evaluating(model):
        for batch in batches[index::count]:
            mine += [(one.document, nll) for one, nll in zip(batch, _nll(model, batch), strict=True)]
            advance(len(batch) * count)
        if is_sharded(model) and len(batches) % count > 0 and index >= len(batches) % count:
            _nll(model, batches[0])  # all processes must call the model equally often
    total: dict[int, float] = {}
    for document, nll in mine if count == 1 else gather_object(mine):
        total[document] = total.get(document, 0.0) + nll
    return total


def _batches(sequences: Sequence[_Sequence], vocabulary: int) -> list[list[_Sequence]]:
    """Return batches of sequences with similar lengths, as large as the limit on the number of logits allows."""
    batches: list[list[_Sequence]] = []
    for sequence in sorted(sequences, key=lambda sequence: len(sequence.ids), reverse=True):
        if batches and (len(batches[-1]) + 1) * len(batches[-1][0].ids) * vocabulary <= _LOGIT_BUDGET:
            batches[-1].append(sequence)
        else:
            batches.append([sequence])
    return batches


def _nll(model: "PreTrainedModel", sequences: Sequence[_Sequence]) -> list[float]:
    """Return the NLL of each sequence's scored tokens, in nats.

    The sequences are padded on the right. In a causal model, padding has no effect on the tokens before it.
    """
    pad = partial(torch.nn.utils.rnn.pad_sequence, batch_first=True)
    ids = pad([one.ids for one in sequences]).to(model.device)
    targets = [torch.where(one.loss_mask, one.ids, IGNORE_INDEX) for one in sequences]
    labels = pad(targets, padding_value=IGNORE_INDEX).to(model.device)
    attended = pad([torch.ones_like(one.ids) for one in sequences]).to(model.device)
    logits = model(input_ids=ids, attention_mask=attended, use_cache=False).logits
    sums = [
        F.cross_entropy(row.float(), label, ignore_index=IGNORE_INDEX, reduction="sum")
        for row, label in zip(logits[:, :-1], labels[:, 1:], strict=True)
    ]
    nll: list[float] = torch.stack(sums).cpu().tolist()  # all at once: each copy waits for the device
    return nll
