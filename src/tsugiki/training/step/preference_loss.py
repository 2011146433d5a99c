"""The loss of a step of preference tuning, and the log-probabilities of answers under the reference.

The reference is the model as it is before the first step: the base with a new adapter, which changes nothing yet, or
the adapter that training begins with. So its log-probabilities are computed once, before the first step, and no second
model is in memory. They are computed in the micro-batches of the steps of an epoch, by the same function as in
training. So at the first step every log-ratio is exactly 0.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from tsugiki.annotations import PreTrainedModel
from tsugiki.data.blocks import Integers, StepBatches
from tsugiki.fast.document_masks import DocumentMasking
from tsugiki.preference.losses import Answers, PreferenceLoss, kto, kto_baseline, likelihood_loss
from tsugiki.preference.pairs import AnswerRows, Preferences, pack_preferences
from tsugiki.training.score.evaluate import by_record, log_probabilities_of, score_answers
from tsugiki.training.step.gradients import Gradients

_MISMATCHED = 16
"""Answers after the prompts of others, from which `kto_baseline` is estimated in each step."""


@dataclass(eq=False)
class AnswerLoss:
    """The loss of the answers in some rows: a `StepLoss`.

    The figures are sums over the answers of a batch: log-probability, score (see `PreferenceLoss`), tokens and number,
    each of chosen (or good) and of rejected (or bad) ones; and the numbers of pairs (single answers) that are right,
    and of all. `record.PreferencePoint` has their means.
    """

    rows: AnswerRows
    loss: PreferenceLoss
    settings: Mapping[str, float]
    """Arguments of the loss."""
    likelihood: float
    """The weight of `likelihood_loss`."""
    reference: Tensor | None = None
    """[records], float32: log-probabilities under the reference; None: 0, to measure the time of a step."""
    mismatched: "Mismatched | None" = None
    """For `kto_baseline`."""
    baseline: float = 0.0
    """z of the step, for `kto`."""

    figures = 10

    def prepare(self, model: PreTrainedModel, step: int) -> None:
        """Compute what all micro-batches of a step need, with the model as it is before the step."""
        if self.mismatched is not None:
            self.baseline = self.mismatched.baseline(model)

    def count(self, batches: StepBatches, rows: list[int]) -> int:
        """Return the number of pairs in the rows; of answers for `kto`, which has a loss for each."""
        answers = len(self.rows.records(rows))
        return answers if self.loss.function is kto else answers // self.rows.preferences.size

    def __call__(
        self, model: PreTrainedModel, batch: dict[str, Any], rows: list[int], count: int
    ) -> tuple[Tensor, Tensor | None]:
        """Return the summed loss of the answers in a batch divided by `count`, and the figures; see `StepLoss`."""
        chosen, rejected = self._kinds(log_probabilities_of(model, self.rows, batch, rows), rows)
        loss = sum((term.sum() for term in self._terms(chosen, rejected)), torch.zeros(()))
        return loss / count, self._figures(chosen, rejected)

    def of_pairs(self, chosen: Answers, rejected: Answers) -> Tensor:
        """Return the loss of each pair, [pairs]; of `kto`, that of both answers."""
        terms = (term.view(-1, len(chosen.tokens)).sum(0) for term in self._terms(chosen, rejected))
        return sum(terms, torch.zeros(()))

    def _terms(self, chosen: Answers, rejected: Answers) -> list[Tensor]:
        more = {"baseline": self.baseline} if self.loss.function is kto else {}
        loss = self.loss.function(chosen, rejected, **self.settings, **more)
        return [loss, self.likelihood * likelihood_loss(chosen)] if self.likelihood else [loss]

    def _kinds(self, log_probabilities: Tensor, rows: list[int]) -> tuple[Answers, Answers]:
        """Return the chosen (or good) and the rejected (or bad) answers of some rows."""
        records = self.rows.records(rows)
        device, good = log_probabilities.device, torch.from_numpy(self.rows.preferences.good[records])
        reference = torch.zeros(len(records)) if self.reference is None else self.reference[records]
        tokens = torch.tensor(self.rows.lengths(rows))
        places = (good.nonzero()[:, 0], (~good).nonzero()[:, 0])
        return tuple(  # type: ignore[return-value]
            Answers(log_probabilities[place.to(device)], tokens[place].to(device), reference[place].to(device))
            for place in places
        )

    @torch.no_grad()
    def _figures(self, chosen: Answers, rejected: Answers) -> Tensor:
        scores = [self.loss.score(kind) for kind in (chosen, rejected)]
        if self.rows.preferences.size == 2:
            right = _count_above_zero(scores[0] - scores[1])
        else:
            right = _count_above_zero(torch.cat([scores[0], -scores[1]]))
        sums = [part.sum() for kind in (chosen, rejected) for part in (kind.log_probabilities, kind.tokens)]
        numbers = [torch.tensor(float(len(kind.tokens)), device=right.device) for kind in (chosen, rejected)]
        judged = numbers[0] if self.rows.preferences.size == 2 else numbers[0] + numbers[1]
        parts = (*sums, scores[0].sum(), scores[1].sum(), *numbers, right, judged)
        return torch.stack([part.float() for part in parts])


def _count_above_zero(differences: Tensor) -> Tensor:
    """Return how many differences are above 0, where one of exactly 0 counts half."""
    return ((differences > 0).float() + 0.5 * (differences == 0).float()).sum()


@dataclass(frozen=True, eq=False)
class Mismatched:
    """Answers that follow the prompts of other answers."""

    rows: AnswerRows
    masking: DocumentMasking
    accelerator: Accelerator
    reference: Tensor
    """Their log-probabilities under the reference."""

    @classmethod
    def of(
        cls, model: PreTrainedModel, rows: AnswerRows, masking: DocumentMasking, accelerator: Accelerator
    ) -> "Mismatched":
        """Choose some of the answers in `rows`, and compute the reference with the model as it is."""
        other = _mismatched(rows)
        return cls(other, masking, accelerator, score_answers(model, other, masking, accelerator))

    def baseline(self, model: PreTrainedModel) -> float:
        """Return z of `kto` for the model as it is."""
        now = score_answers(model, self.rows, self.masking, self.accelerator)
        return float(kto_baseline(Answers(now, torch.ones_like(now), self.reference)))


def _mismatched(rows: AnswerRows) -> AnswerRows:
    """Return rows of some answers, evenly spread, each after the prompt of the next one."""
    store, records = rows.preferences.store, rows.records(range(len(rows.blocks)))
    chosen = [records[number * len(records) // _MISMATCHED] for number in range(min(_MISMATCHED, len(records)))]
    ids, masks = [], []
    for record, other in zip(chosen, [*chosen[1:], chosen[0]], strict=True):
        (prompt, _answer), (_prompt, answer) = (_parts(rows.preferences, number) for number in (other, record))
        ids.append(np.concatenate([prompt, answer])[: rows.blocks.block_size])
        masks.append((np.arange(len(prompt) + len(answer)) >= len(prompt))[: rows.blocks.block_size])
    offsets = np.cumsum([0, *map(len, ids)])
    store = replace(store, ids=np.concatenate(ids), loss_mask=np.concatenate(masks), offsets=offsets, digest="")
    preferences = replace(rows.preferences, store=store, size=1)
    blocks, _too_long = pack_preferences(preferences, np.arange(len(chosen)), rows.blocks.block_size, rows.blocks.pad)
    return AnswerRows(preferences, blocks, rows.apart)


def _parts(preferences: Preferences, record: int) -> tuple[Integers, Integers]:
    """Return the tokens of a record before its answer, and those of the answer."""
    here = slice(*preferences.store.offsets[record : record + 2])
    first = int(preferences.store.loss_mask[here].argmax())
    return preferences.store.ids[here][:first], preferences.store.ids[here][first:]


def training_reference(
    gradients: Gradients, rows: AnswerRows, accelerator: Accelerator, advance: Callable[[int], None]
) -> Tensor:
    """Return the log-probabilities of all answers in training rows, [records]: in the micro-batches of an epoch.

    `advance` is called with the number of steps that are done.
    """

    def compute(model: PreTrainedModel, batch: dict[str, Any], numbers: list[int]) -> Tensor:
        return log_probabilities_of(model, rows, batch, numbers)

    def found() -> Iterator[tuple[list[int], Tensor]]:
        for step in range(gradients.batches.steps_per_epoch):
            yield from gradients.forward(step, compute)
            advance(1)

    return by_record(found(), rows, accelerator)
