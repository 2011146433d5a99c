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

The answers of preference tuning are scored by their log-probabilities.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from torch.nn import functional as F

from tsugiki.annotations import PreTrainedModel, PreTrainedTokenizerBase
from tsugiki.data.blocks import Collator, StepBatches, of_similar_length
from tsugiki.data.encoding import document_start, encode, encode_records
from tsugiki.data.records import AssistantTurns, Document, target_text
from tsugiki.data.windows import Window
from tsugiki.errors import TsugikiError
from tsugiki.fast.document_masks import DocumentMasking
from tsugiki.fast.forward import answer_log_probabilities, has_chunked_loss, losses_without_logits
from tsugiki.model.context import IGNORE_INDEX, context_length, rope_depends_on_length
from tsugiki.model.inference import evaluating
from tsugiki.model.linear import to_device
from tsugiki.preference.losses import Answers
from tsugiki.preference.pairs import AnswerRows
from tsugiki.training.data.micro_batches import MicroBatch, MicroBatches
from tsugiki.training.measure.shapes import rows_of_micro_batch
from tsugiki.training.model.sharding import is_sharded
from tsugiki.training.record.result import Evaluation, PairScores, ScoredAnswers, summarise, summarise_pairs
from tsugiki.training.tools.processes import run_in_threads

# Tokens of a batch:
_THREAD_TOKENS = 256  # for one thread of a processor; more are no faster, and leave other threads without work
_DEVICE_TOKENS = 8192
_LOGIT_BUDGET = 1 << 26  # largest number of logits in a batch, where a model needs them: 256 MB in float32


@torch.no_grad()
def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    windows: Sequence[Window],
    turns: AssistantTurns = "all",
    advance: Callable[[int], None] = lambda done: None,
    context: int | None = None,
    accelerator: Accelerator | None = None,
) -> Evaluation:
    """Score windows of text as the module docstring describes. The model's training mode is restored afterwards.

    `windows` are from `split_windows`, and `turns` says which answers of a conversation are scored. `advance` is called
    with the number of sequences done since the last call. A forward pass has at most `context` tokens (None: the
    model's context). The processes of `accelerator` share the work, and each gets the result for all windows.
    """
    if not windows:
        raise TsugikiError("there is no text to evaluate on")
    context = context or context_length(model)
    texts = [target_text(window.record, turns) for window in windows]
    encoded = encode(tokenizer, texts)
    sequences: list[TokenSequence] = []
    counts: dict[int, list[int]] = {}  # document -> tokens, characters
    groups = {window.document: window.document if window.group is None else window.group for window in windows}
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
        raise TsugikiError(
            "everything to evaluate on is longer than the model's context of {context} tokens; shorten it, or take a "
            "base with a longer context",
            context=context,
        )
    nll = score_sequences(model, sequences, advance, accelerator)
    unknown = tokenizer.unk_token_id
    return summarise(
        [(nll[number], tokens, characters) for number, (tokens, characters) in counts.items()],
        groups=[groups[number] for number in counts],
        windows=len(windows),
        split_windows=split,
        skipped_records=skipped,
        unknown_tokens=0 if unknown is None else sum(ids.count(unknown) for ids in encoded),
        tokenizer_is_lossless=all(
            tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
            for ids, text in zip(encoded, texts, strict=True)
        ),
    )


@dataclass(frozen=True, eq=False)
class TokenSequence:
    """Tokens that are scored in one forward pass."""

    ids: Tensor
    """Token ids [length]."""
    loss_mask: Tensor
    """Whether each token is scored [length]. The first token has no prediction and never is."""
    document: int
    """Index of the record that the tokens are from."""


def _sequences(
    tokenizer: PreTrainedTokenizerBase, window: Window, ids: list[int], turns: AssistantTurns, context: int
) -> list[TokenSequence]:
    """Return the sequences of a window, each of at most `context` tokens; `ids` are the tokens of its target text.

    They are several for a document that is longer than the context, and none for another record that is.
    """
    if isinstance(window.record, Document):
        start = document_start(tokenizer)
        pieces = [torch.tensor([start, *ids[first : first + context - 1]]) for first in range(0, len(ids), context - 1)]
        return [TokenSequence(piece, torch.ones(len(piece), dtype=torch.bool), window.document) for piece in pieces]
    encoded = encode_records(tokenizer, [window.record], turns)[0]
    if len(encoded.ids) > context:
        return []
    return [TokenSequence(torch.tensor(encoded.ids), torch.tensor(encoded.loss_mask), window.document)]


def score_sequences(
    model: PreTrainedModel,
    sequences: Sequence[TokenSequence],
    advance: Callable[[int], None] = lambda done: None,
    accelerator: Accelerator | None = None,
) -> dict[int, float]:
    """Return document -> summed NLL in nats, with the model in evaluation mode. See `evaluate` for the arguments."""
    index, count = (0, 1) if accelerator is None else (accelerator.process_index, accelerator.num_processes)
    batches = _batches(sequences, model)
    mine = batches[index::count]
    found: list[Tensor] = []
    with evaluating(model):
        for batch, nll in zip(mine, _each_nll(model, mine), strict=True):
            found.append(nll)
            advance(len(batch) * count)
        if is_sharded(model) and len(batches) % count > 0 and index >= len(batches) % count:
            _nll(model, batches[0])  # all processes must call the model equally often
    # All at once: each copy waits for the device.
    values = torch.cat(found).cpu().tolist() if found else []
    documents = [sequence.document for batch in mine for sequence in batch]
    scores = list(zip(documents, values, strict=True))
    nlls: dict[int, list[float]] = {}
    for document, value in scores if count == 1 else gather_object(scores):
        nlls.setdefault(document, []).append(value)
    return {document: math.fsum(parts) for document, parts in nlls.items()}  # exact, so their order does not matter


def _each_nll(model: PreTrainedModel, batches: Sequence[list[TokenSequence]]) -> Iterable[Tensor]:
    """Return `_nll` of each batch; on a processor they are computed in parallel, with one thread each.

    Therefore the operations, and every bit of the result, do not depend on the number of torch's threads.
    """
    tasks = [partial(_nll, model, batch) for batch in batches]
    if model.device.type == "cpu" and not is_sharded(model) and not rope_depends_on_length(model):
        return run_in_threads(tasks, threads_of_each=1)
    return (task() for task in tasks)


def _batches(sequences: Sequence[TokenSequence], model: PreTrainedModel) -> list[list[TokenSequence]]:
    """Return batches of sequences with similar lengths, which do not depend on the number of threads or processes."""
    on_cpu = model.device.type == "cpu"
    most = _THREAD_TOKENS if on_cpu else _DEVICE_TOKENS
    if not _without_logits(model):
        most = min(most, _LOGIT_BUDGET // model.config.get_text_config().vocab_size)
    if rope_depends_on_length(model):
        most = 0  # the logits of a sequence depend on the longest one in its batch
    groups = of_similar_length([len(sequence.ids) for sequence in sequences], most)
    return [[sequences[number] for number in group] for group in groups]


def _without_logits(model: PreTrainedModel) -> bool:
    return has_chunked_loss(model) and not is_sharded(model)


@torch.no_grad()
def _nll(model: PreTrainedModel, sequences: Sequence[TokenSequence]) -> Tensor:
    """Return the NLL of each sequence's scored tokens, in nats, [sequences], on the model's device.

    The sequences are padded on the right, without a mask. In a causal model, padding has no effect on the tokens before
    it, and a mask would keep attention from its fast kernels.
    """
    pad = partial(torch.nn.utils.rnn.pad_sequence, batch_first=True)
    ids = pad([sequence.ids for sequence in sequences])
    targets = [torch.where(sequence.loss_mask, sequence.ids, IGNORE_INDEX)[1:] for sequence in sequences]
    # The last position predicts nothing.
    labels = F.pad(pad(targets, padding_value=IGNORE_INDEX), (0, 1), value=IGNORE_INDEX)
    ids, labels = (to_device(tensor, model.device) for tensor in (ids, labels))
    inputs: dict[str, Any] = {"input_ids": ids, "use_cache": False}
    if model.device.type == "cpu":
        # GPT-2 warns without a mask. On an accelerator, a mask would force a synchronisation.
        inputs["attention_mask"] = torch.ones_like(ids)
    if _without_logits(model):
        return losses_without_logits(model, labels, **inputs).sum(1)
    logits = model(**inputs).logits
    losses = [
        F.cross_entropy(row.float(), label, ignore_index=IGNORE_INDEX, reduction="sum")
        for row, label in zip(logits, labels, strict=True)
    ]
    return torch.stack(losses)


def score_answers(
    model: PreTrainedModel, rows: AnswerRows, masking: DocumentMasking, accelerator: Accelerator
) -> Tensor:
    """Return the log-probabilities of all answers in some rows, [records], float32; 0 for other records.

    The model is in evaluation mode. Several processes share the work, and all get the result.
    """
    batches = StepBatches(rows.blocks, Collator(masking, model.dtype), len(rows.blocks), seed=0)
    size = rows_of_micro_batch(rows.blocks.block_size, adapter=True, device=accelerator.device.type)
    micro_batches = MicroBatches(model, batches, accelerator, size)

    @torch.no_grad()
    def compute(micro: MicroBatch) -> tuple[list[int], Tensor]:
        return micro.rows, log_probabilities_of(model, rows, micro_batches.arguments(micro), micro.rows)

    with evaluating(model):
        return by_record(micro_batches.compute(0, compute), rows, accelerator)


def scores_of(
    rows: AnswerRows,
    score: Callable[[Answers], Tensor],
    values: Tensor,
    reference: Tensor | None = None,
    objective: Callable[[Answers, Answers], Tensor] | None = None,
) -> PairScores:
    """Return the figures of the answers in some rows, from their log-probabilities `values` [records].

    `score` gives the number that is compared, such as `PreferenceLoss.score`, and `objective` the loss of each pair.
    """
    everything, good = range(len(rows.blocks)), rows.preferences.good
    lengths = dict(zip(rows.records(everything), rows.lengths(everything), strict=True))

    def of_kind(wanted: bool) -> tuple[Answers, ScoredAnswers]:
        some = [record for record in sorted(lengths) if good[record] == wanted]
        tokens = torch.tensor([lengths[record] for record in some])
        answers = Answers(values[some], tokens, None if reference is None else reference[some])
        questions = rows.preferences.store.index.questions[some].tolist()
        return answers, ScoredAnswers(score(answers).tolist(), values[some].tolist(), tokens.tolist(), questions)

    paired = rows.preferences.size == 2
    (chosen, scored), (rejected, others) = of_kind(True), of_kind(False)
    objectives = objective(chosen, rejected).tolist() if objective is not None and paired else []
    return summarise_pairs(scored, others, paired).model_copy(update={"objectives": tuple(objectives)})


def log_probabilities_of(model: PreTrainedModel, rows: AnswerRows, batch: dict[str, Any], numbers: list[int]) -> Tensor:
    """Return the log-probabilities of the answers in a batch of rows, in the order of their records."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    return answer_log_probabilities(model, rows.tokens(numbers), **inputs)


def by_record(found: Iterator[tuple[list[int], Tensor]], rows: AnswerRows, accelerator: Accelerator) -> Tensor:
    """Return [records] from the results for rows, on all processes."""
    values = torch.zeros(len(rows.preferences.store.offsets) - 1)
    for numbers, result in found:
        values[rows.records(numbers)] = result.float().cpu()
    if accelerator.num_processes > 1:
        values = values.to(accelerator.device)
        torch.distributed.all_reduce(values)
    return values.cpu()
