"""How often a model prefers the better of two answers.

A pair is right if the score of the chosen answer is higher than that of the rejected one; equal scores count half. In a
run, the score is what its loss compares, such as the log-ratio to the reference (`preference.losses`). Between models,
it is the log-probability of the answer, or that per token, which needs no reference.

A model that has only learned that longer (or shorter) answers are better is right as often as the length is, so there
are two figures to compare with: how often the longer answer is the chosen one, and the accuracy on pairs whose answers
differ by at most a tenth in length.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from tsugiki.training.record.interval import Interval, effective_trials, wilson_interval

_MATCHED = 0.1  # largest difference of two lengths, relative to the longer one


class PairScores(BaseModel):
    """The scores of a model for pairs, or for single answers that are good or bad. Intervals cover 95 %."""

    model_config = ConfigDict(frozen=True)

    pairs: int
    """Number of pairs; of single answers, if there are no pairs."""
    accuracy: float
    """Share of them that are right."""
    accuracy_interval: Interval
    """By Wilson, for the number of pairs that `effective_trials` gives."""
    margin: float
    """Mean difference between the scores of chosen and rejected answers."""
    chosen: float
    """Mean log-probability of a chosen answer, summed over its tokens, in nats."""
    rejected: float
    chosen_tokens: float
    """Mean number of tokens of a chosen answer."""
    rejected_tokens: float
    matched: int = 0
    """Number of pairs whose answers have about the same length."""
    matched_accuracy: float | None = None
    """Share of these that are right; None: there are none."""
    likelier: float | None = None
    """Share of the pairs whose chosen answer has the higher log-probability, whatever the score; None for single
    answers."""
    longer_is_chosen: float | None = None
    """Share of the pairs whose longer answer is the chosen one; None for single answers."""
    right: tuple[float, ...] = ()
    """For each pair (single answer) 1 if it is right, 0 if not, and 0.5 for equal scores."""
    objectives: tuple[float, ...] = ()
    """For each pair what a step of the run minimises, in nats; empty: there is no such loss, or no pairs."""
    prompts: tuple[int, ...] = ()
    """For each pair (single answer) the number of its prompt. Empty: every one has a prompt of its own."""


class StepPairs(PairScores):
    """The scores of pairs during a run."""

    step: int
    """Number of optimiser steps before it."""


class TwoScores(BaseModel):
    """The scores of a model for the same pairs by two measures."""

    model_config = ConfigDict(frozen=True)

    by_sum: PairScores
    """By the log-probability of an answer, summed over its tokens."""
    per_token: PairScores
    """By its mean over the tokens."""


@dataclass(frozen=True)
class ScoredAnswers:
    """One number for each answer of a kind; of pairs, in the same order for both kinds."""

    scores: Sequence[float]
    log_probabilities: Sequence[float]
    tokens: Sequence[int]
    questions: Sequence[int] = ()
    """`RecordIndex.questions` of each; empty: all differ."""


def summarise_pairs(chosen: ScoredAnswers, rejected: ScoredAnswers, paired: bool = True) -> PairScores:
    """Return the figures of pairs; not `paired`: of single answers, a good one of which is right with a score above 0.

    There is at least one answer.
    """
    scores, others = np.array(chosen.scores, float), np.array(rejected.scores, float)
    lengths, other_lengths = np.array(chosen.tokens, float), np.array(rejected.tokens, float)
    differences = scores - others if paired else np.concatenate([scores, -others])
    right = np.where(differences == 0, 0.5, (differences > 0).astype(float))
    prompts = _numbered(chosen.questions if paired else [*chosen.questions, *rejected.questions])
    trials = effective_trials(right.tolist(), prompts)
    matched = np.zeros(0, bool)
    longer = likelier = None
    if paired:
        likelier = _share_higher(np.array(chosen.log_probabilities), np.array(rejected.log_probabilities))
        matched = np.abs(lengths - other_lengths) <= _MATCHED * np.maximum(lengths, other_lengths)
        longer = _share_higher(lengths, other_lengths)
    return PairScores(
        pairs=len(right),
        accuracy=float(right.mean()),
        accuracy_interval=wilson_interval(right.mean() * trials, trials),
        margin=_mean(scores) - _mean(others),
        chosen=_mean(np.array(chosen.log_probabilities, float)),
        rejected=_mean(np.array(rejected.log_probabilities, float)),
        chosen_tokens=_mean(lengths),
        rejected_tokens=_mean(other_lengths),
        matched=int(matched.sum()),
        matched_accuracy=float(right[matched].mean()) if matched.any() else None,
        likelier=likelier,
        longer_is_chosen=longer,
        right=tuple(right.tolist()),
        prompts=prompts,
    )


def _numbered(questions: Sequence[int]) -> tuple[int, ...]:
    """Return a small number for each question, equal for equal ones; nothing if all differ. 0 is no question."""
    numbers = dict[int, int]()
    found = tuple(numbers.setdefault(question or -place - 1, len(numbers)) for place, question in enumerate(questions))
    return found if len(numbers) < len(found) else ()


def _share_higher(values: npt.NDArray[np.float64], others: npt.NDArray[np.float64]) -> float:
    """Return in which share of the places the first one is higher, where equal ones count half."""
    return float(np.where(values == others, 0.5, values > others).mean())


def _mean(values: npt.NDArray[np.float64]) -> float:
    return float(values.mean()) if len(values) else 0.0
