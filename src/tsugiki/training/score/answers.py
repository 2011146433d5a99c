"""Score pairs of answers, or single ones: log-probabilities under a model, and how often it is right."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from tsugiki.annotations import PreTrainedModel
from tsugiki.data.blocks import Collator, StepBatches
from tsugiki.fast.document_masks import DocumentMasking
from tsugiki.fast.forward import answer_log_probabilities
from tsugiki.model.inference import evaluating
from tsugiki.preference.losses import Answers
from tsugiki.preference.pairs import AnswerRows
from tsugiki.training.data.micro_batches import MicroBatch, MicroBatches
from tsugiki.training.measure.shapes import rows_of_micro_batch
from tsugiki.training.record.result import PairScores, ScoredAnswers, summarise_pairs


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
