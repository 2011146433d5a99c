"""What a run decides by its validation text: from what, by which rule, and what it costs.

The validation text is some windows of documents that are neither trained on nor held out. A look (`Look`) scores them
after a step. The held-out text decides nothing.

    decision        from what                  rule
    windows         the first look             as many as make the interval of its change 0.3 % wide
    kept step       all looks                  the one with the lowest loss, at its strength; of pairs, what a step
                                               minimises, of the looks at which the chosen answers are not certainly
                                               less likely than at the start
    strength        each look at 1/2 and 1,    where a parabola through the losses of the base, of half the update and
                    and the base               of the whole one is lowest; 0 if that is the base
    end of the run  all looks                  the loss has levelled off (`has_levelled`), if the length is open; or
                                               `patience` looks in a row are certainly above the lowest one
    lower rate      the training loss          it has risen by a fifth (`learning_rate`)

Two looks are compared in pairs, document by document; one is certainly lower if the 95 % interval of the change over
documents (`evaluation.interval`) is below 0. With a single document, its windows take the place of documents.
A run can go on if it is not certain that it should end. But it must keep some step, and so the lowest loss decides
that without an interval: to keep the last step that is not certainly higher costs 0.9 % with two documents, where the
lowest loss costs less than 0.1 % (docs/training-evidence.md).

That the loss has levelled off is decided without an interval as well: rows of questions are few and differ, so that no
fall would be certain at which most answers are still learned. The rate then falls, over a quarter of the steps so far.

Looks take about a twentieth of the time of the steps (`choices.plan_evaluations`).

The strength s of an adapter is a factor on its update ΔW = (alpha / r) B A: 0 is the base, 1 is what was trained. A
model between the base and a fine-tuned model is often better on other text than both (Wortsman et al. 2022,
arXiv:2109.01903). B is multiplied by s at the end, so the adapter's file stays an ordinary one. Checkpoints have the
whole update.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from tsugiki.language import _
from tsugiki.lora.graft import trainable_parameters
from tsugiki.lora.pair import LowRank
from tsugiki.training.record.interval import Interval, Score, change_interval, sum_groups
from tsugiki.training.record.result import Evaluation, StepEvaluation, StepPairs
from tsugiki.training.record.run_record import RunRecord

HALF = 0.5
"""The strength at which a look scores the validation text besides the whole update."""
_WIDTH = 0.003
"""Width of the interval of a change that is narrow enough, relative to the loss."""
LEVEL = 0.02
"""Share of all that was gained that a look must gain if a run is to go on."""
_OF_THE_REST = 0.1  # share of the lowest loss that a look must gain, if it gains less than that
_NOTHING_LEFT = 0.01  # share of the loss of the base
_LEAST = 0.05  # strengths below it are 0, and as near to 1 are 1
_TINY = 1e-9  # nats, for logarithms
OF_ONE_TEXT = 0.45
"""The part that a run keeps of the strength which the end of its only document asks for: the end has the names and the
subject of what was learned, and other texts have not (docs/training-evidence.md)."""


@dataclass(frozen=True)
class Look:
    """The validation text after a step."""

    whole: StepEvaluation
    """With what was trained."""
    half: StepEvaluation | None = None
    """With half of the update. None: the method has no strength."""
    base: StepEvaluation | None = None
    """Without an update."""

    @property
    def step(self) -> int:
        """Number of optimiser steps before it."""
        return self.whole.step

    @property
    def results(self) -> dict[float, StepEvaluation]:
        """What was scored, by its strength."""
        if self.half is None or self.base is None:
            return {1.0: self.whole}
        return {0.0: self.base, HALF: self.half, 1.0: self.whole}

    @cached_property
    def strength(self) -> float:
        """The strength with the lowest loss, as a parabola has it."""
        losses = [result.loss for result in self.results.values()]
        return lowest_of_parabola(*losses) if len(losses) > 1 else 1.0

    @property
    def loss(self) -> float:
        """The loss at this strength, in nats per token."""
        return sum(score[0] for score in self.scores) / sum(score[1] for score in self.scores)

    @cached_property
    def scores(self) -> list[Score]:
        """The scores of the documents at this strength; of a single document, those of its windows."""
        s, scores = self.strength, [_scores(result) for result in self.results.values()]
        # The parabola through three points: 1 at its own one, and 0 at the two others. Of logarithms, hence powers.
        weights = ((1 - s) * (1 - 2 * s), 4 * s * (1 - s), s * (2 * s - 1))[-len(scores) :]
        return [
            (math.prod(max(one[0], _TINY) ** weight for weight, one in zip(weights, same, strict=True)), *same[0][1:])
            for same in zip(*scores, strict=True)
        ]


@dataclass(frozen=True)
class PairLook:
    """The validation pairs after a step of preference tuning."""

    pairs: StepPairs

    @property
    def step(self) -> int:
        """Number of optimiser steps before it."""
        return self.pairs.step

    @property
    def loss(self) -> float:
        """The mean of what a step of the run minimises, over the pairs."""
        return sum(self.pairs.objectives) / len(self.pairs.objectives)

    @cached_property
    def scores(self) -> list[Score]:
        """What a step minimises, summed over the pairs of each prompt, and their number."""
        return sum_groups([(loss, 1, 1) for loss in self.pairs.objectives], self.pairs.prompts)


def lowest_of_parabola(*losses: float) -> float:
    """Return the strength, from 0 to 1, where a parabola through the logarithms of losses at 0, 1/2 and 1 is lowest.

    Logarithms, because the loss of facts that are learned by heart falls by a factor with each part of the update. A
    parabola through losses of 3.3, 0.5 and 0.05 would be below 0.
    """
    base, half, whole = (math.log(max(loss, _TINY)) for loss in losses)
    curvature = 2 * (base + whole - 2 * half)
    strength = (base + curvature - whole) / (2 * curvature) if curvature > 0 else float(whole < base)
    return 0.0 if strength < _LEAST else min(round(strength, 2), 1.0) if strength < 1 - _LEAST else 1.0


def is_certainly_lower(one: Look | PairLook, other: Look | PairLook) -> bool:
    """Return whether the loss of a look is certainly below that of another one."""
    interval = change_interval(other.scores, one.scores)
    return interval is not None and interval[1] < 0


def looks(record: RunRecord) -> list[Look]:
    """Return the looks of a run so far; that of step 0, the base, is not among them if the run has a strength."""
    halves = {result.step: result for result in record.half_validations}
    base = next((result for result in record.validations if result.step == 0), None)
    if base is None or not halves:
        return [Look(result) for result in record.validations]
    return [Look(result, halves[result.step], base) for result in record.validations if result.step in halves]


def pair_looks(record: RunRecord) -> list[PairLook]:
    """Return the looks of a run that learns pairs, those at which the chosen answers are as likely as at the start.

    That of the start is the first one. Losses that teach a choice can fall while the model forgets how to write. Where
    there is no interval, a higher loss suffices: nothing is kept that may have ruined the text.
    """
    start, *later = record.validations
    ruined = set()
    for result in later:
        interval = change_interval(_scores(start), _scores(result))
        if (interval[0] if interval else result.loss - start.loss) > 0:
            ruined.add(result.step)
    return [PairLook(pairs) for pairs in record.pair_validations if pairs.step not in ruined]


def has_levelled(record: RunRecord) -> bool:
    """Return whether the loss no longer falls: one look gains hardly anything, or two in a row are above the lowest.

    Of few rows, one look may be above the lowest by chance. Hardly anything is little relative to all that was gained,
    and little relative to what is left, unless hardly anything is left: most of what is gained on facts is how answers
    are worded, and the last tenths of a nat are the facts themselves.
    """
    halves = {result.step: result.loss for result in record.half_validations}
    base, *earlier, last = (min(whole.loss, halves.get(whole.step, math.inf)) for whole in record.validations)
    if not earlier:
        return False
    lowest = min(earlier)
    if last > lowest:
        return lowest < earlier[-1]
    gain = lowest - last
    return gain < LEVEL * (base - last) and (gain < _OF_THE_REST * lowest or last < _NOTHING_LEFT * base)


def enough_windows(change: Interval | None, windows: int, fewest: int) -> int:
    """Return how many windows suffice, if the change from the base to the first look has this interval on `windows`.

    The width of an interval falls with the square root of the number of windows.
    """
    if change is None:
        return windows
    return min(windows, max(fewest, math.ceil(windows * ((change[1] - change[0]) / _WIDTH) ** 2)))


def starts_from_zero(model: nn.Module, initial: Mapping[str, Tensor]) -> bool:
    """Return whether nothing but pairs of LoRA train, whose update B A is 0 with the values `initial`.

    Then, and only then, is a part of the update a model between the base and what was trained. It is not so for DoRA,
    PiSSA, biases, saved modules, and an adapter that training began with.
    """

    def is_zero(factor: str) -> bool:
        return factor in initial and not bool(initial[factor].any())

    return has_only_pairs(model) and all(is_zero(f"{name}.A") or is_zero(f"{name}.B") for name in _pairs(model))


def has_only_pairs(model: nn.Module) -> bool:
    """Return whether the active adapter has pairs of LoRA and nothing else, so that its update can be multiplied."""
    pairs = _pairs(model)
    factors = {f"{name}.{factor}" for name in pairs for factor in ("A", "B")}
    if not pairs or not set(trainable_parameters(model)) <= factors:
        return False
    return all(getattr(pair, part) is None for pair in pairs.values() for part in ("magnitude", "A0", "bias"))


def _pairs(model: nn.Module) -> dict[str, LowRank]:
    return {name: module for name, module in model.named_modules() if isinstance(module, LowRank)}


@torch.no_grad()
def multiply_update(model: nn.Module, factor: float) -> None:
    """Multiply the update of every LoRA pair of the model, in place."""
    for module in model.modules():
        if isinstance(module, LowRank):
            module.B.mul_(factor)


def strength_note(strength: float, losses: Mapping[float, float]) -> str:
    """Return the sentence that says which strength was chosen; `losses` were measured on the validation text."""
    if strength == 0:
        return _("nothing that was learned helps on the validation text, so the adapter stays as it was (strength 0)")
    message = _(
        "strength {strength:g}: with this part of its update, the adapter has a loss of {loss:.4f} on the validation "
        "text, with all of it {whole:.4f}"
    )
    if strength not in losses:
        message = _(
            "strength {strength:g}: less than half of what is best for the end of the same text, because other texts "
            "need less; {flag:keep last} keeps the whole update"
        )
    return message.format(strength=strength, loss=losses.get(strength), whole=losses.get(1.0))


def _scores(result: Evaluation) -> list[Score]:
    return list(result.independent if len(result.independent) > 1 else result.documents)
