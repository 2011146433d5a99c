"""The results of evaluations, with their intervals: losses of texts, right answers, and preferred answers of pairs.

A pair is right if the score of the chosen answer is higher than that of the rejected one; equal scores count half. In a
run, the score is what its loss compares, such as the log-ratio to the reference (`preference.losses`). Between models,
it is the log-probability of the answer, or that per token, which needs no reference.

A model that has only learned that longer (or shorter) answers are better is right as often as the length is, so there
are two figures to compare with: how often the longer answer is the chosen one, and the accuracy on pairs whose answers
differ by at most a tenth in length.

The rounds of a run that learns by a reward are here, too, and which of them is kept, at which strength: a factor on the
update of a round's whole adapter, as in `training.choose.decisions`. Each round and each strength that can be kept was
judged by answers of its own: nothing is interpolated.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, computed_field

from tsugiki.language import _, marked, ngettext
from tsugiki.preference.sampling import AnswerCounts
from tsugiki.training.record.interval import (
    Change,
    Interval,
    Score,
    bits_interval,
    change,
    effective_trials,
    loss_interval,
    mean_interval,
    paired_interval,
    sum_groups,
    wilson_interval,
)


class Evaluation(BaseModel):
    """The result of `training.score.evaluate`. Losses are in nats per token, intervals cover 95 %."""

    model_config = ConfigDict(frozen=True)

    loss: float
    perplexity: float
    bits_per_char: float
    nll: float
    """Summed negative log-likelihood of all tokens, in nats."""
    tokens: int
    """Number of tokens that are scored."""
    characters: int
    """Number of characters (code points) in these tokens."""
    windows: int
    """Number of windows of text."""
    split_windows: int
    """Number of windows that were scored in several pieces, because they are longer than the context."""
    skipped_records: int
    """Number of examples that were not scored, because they are longer than the context."""
    unknown_tokens: int
    """Number of tokens that replace characters which the tokenizer does not have."""
    tokenizer_is_lossless: bool
    """Whether decoding the tokens gives the text back."""
    warning: str | None
    """Why the bits per character are too low; None if they are not."""
    documents: tuple[Score, ...]
    """NLL, tokens and characters of every document."""
    groups: tuple[int, ...] = ()
    """For every document, the number of its group of near-duplicates, which count as one in the intervals. Empty: every
    document is a group of its own."""

    @property
    def independent(self) -> tuple[Score, ...]:
        """The summed scores of each group of near-duplicates; the intervals are over these groups."""
        return tuple(sum_groups(self.documents, self.groups))

    @computed_field  # type: ignore[prop-decorator]
    @property
    def loss_interval(self) -> Interval | None:
        """None if the text is one document. The intervals are computed from `documents`, not read from a record."""
        return loss_interval(self.independent)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def perplexity_interval(self) -> Interval | None:
        """From the interval of the loss."""
        return self.loss_interval and (_exp(self.loss_interval[0]), _exp(self.loss_interval[1]))

    @computed_field  # type: ignore[prop-decorator]
    @property
    def bits_per_char_interval(self) -> Interval | None:
        """As `loss_interval`."""
        return bits_interval(self.independent)


FEWEST_CHARACTERS = 250
"""Without an interval, a change on fewer characters is no percentage. From here on, 19 of 20 stretches of a text say
rightly whether it became likelier (`benchmarks.quality.single_texts --stretches`)."""
_LOSSY = marked("decoding does not give the text back: the bits per character may be too low")


class StepEvaluation(Evaluation):
    """An evaluation during a run."""

    step: int
    """Number of optimiser steps before it."""


class Answer(BaseModel):
    """The answer of a model to a question."""

    model_config = ConfigDict(frozen=True)

    source: str
    """Where the question was read: `file:line`."""
    question: str = ""
    """The prompt; of a conversation its last turn."""
    expected: str = ""
    """The first of the expected answers."""
    answer: str
    correct: bool


class Answers(BaseModel):
    """The answers of a model to all questions, and the share of correct ones with its 95 % interval (Wilson)."""

    model_config = ConfigDict(frozen=True)

    questions: int
    correct: int
    share: float
    share_interval: Interval
    as_conversation: bool | None = None
    """Whether the questions were turns of a conversation, by the chat template; None: unknown, of an older record."""
    answers: tuple[Answer, ...]


class StepAnswers(Answers):
    """The answers to held-out questions during a run."""

    step: int
    """Number of optimiser steps before it."""
    counted: bool
    """Whether right answers are counted: the expected answers are short."""


def warning_text(result: Evaluation) -> str:
    """Return the warning of an evaluation in the user's language; the record contains it in English."""
    if not result.unknown_tokens:
        return _(_LOSSY)
    return ngettext(
        "{count:,} unknown token: the bits per character are too low",
        "{count:,} unknown tokens: the bits per character are too low",
        result.unknown_tokens,
        count=result.unknown_tokens,
    )


def summarise(
    documents: Sequence[Score],
    groups: Sequence[int],
    windows: int,
    split_windows: int,
    skipped_records: int,
    unknown_tokens: int,
    tokenizer_is_lossless: bool,
) -> Evaluation:
    """Compute the figures and their intervals from the scores of the documents.

    `groups` has the number of each document's group of near-duplicates; the other arguments are as in `Evaluation`.
    """
    nll = sum(score[0] for score in documents)
    tokens = sum(score[1] for score in documents)
    characters = sum(score[2] for score in documents)
    has_groups = len(set(groups)) < len(groups)
    warning = None
    if unknown_tokens:
        warning = f"{unknown_tokens:,} unknown tokens: the bits per character are too low"
    elif not tokenizer_is_lossless:
        warning = _LOSSY
    return Evaluation(
        loss=nll / tokens,
        perplexity=_exp(nll / tokens),
        bits_per_char=nll / math.log(2) / characters,
        nll=nll,
        tokens=tokens,
        characters=characters,
        windows=windows,
        split_windows=split_windows,
        skipped_records=skipped_records,
        unknown_tokens=unknown_tokens,
        tokenizer_is_lossless=tokenizer_is_lossless,
        warning=warning,
        documents=tuple(documents),
        groups=tuple(groups) if has_groups else (),
    )


def of_first_windows(result: StepEvaluation, count: int) -> StepEvaluation:
    """Return the figures of the first windows alone; every window is a document of its own (`evaluate.in_turns`)."""
    kept = {name: getattr(result, name) for name in ("split_windows", "skipped_records", "unknown_tokens")}
    first = summarise(
        result.documents[:count],
        result.groups[:count] or range(count),
        count,
        **kept,
        tokenizer_is_lossless=result.warning is None,
    )
    return StepEvaluation(step=result.step, **dict(first))


def change_of_bits(before: Evaluation, after: Evaluation) -> Change:
    """Return the relative change of the bits per character; not a number if there is too little text to tell."""
    found = change(before.bits_per_char, after.bits_per_char, before.independent, after.independent)
    return replace(found, relative=math.nan) if is_too_little(after) else found


def is_too_little(result: Evaluation) -> bool:
    """Return whether an evaluation is of too little text for a change in percent."""
    return result.loss_interval is None and result.characters < FEWEST_CHARACTERS


def change_of_loss(before: Evaluation, after: Evaluation) -> Change:
    """Return the relative change of the loss between two models with the same tokenizer."""
    return change(before.loss, after.loss, before.independent, after.independent)


def change_of_share(before: Answers, after: Answers) -> tuple[float, Interval]:
    """Return the difference of the shares of correct answers to the same questions, with its paired 95 % interval."""
    pairs = [(one.correct, other.correct) for one, other in zip(before.answers, after.answers, strict=True)]
    return after.share - before.share, paired_interval(pairs)


def _exp(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf


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


_LEAST_VARIETY = 0.75
"""The share of the start's variety that answers must have."""
_MORE_SPOILED = 0.05
"""How far the share of answers that are empty or repeat themselves may rise, by the lower end of the interval."""
_FEWEST_ROUNDS = 4  # rounds, with the start, after which a run may end


class RewardRound(BaseModel):
    """What the model is worth after a round, or with a part of its update. Round 0 is the start."""

    round: int
    strength: float = 1.0
    """The part of the update."""
    held_out: list[float]
    """The mean reward of the answers to each held-out prompt."""
    validation: list[float]
    """The same of each validation prompt."""
    length: float
    """Mean number of characters of the answers that decide: to validation prompts, and to some to learn from if these
    are few."""
    distinct: float
    """Mean share of different ones among the sequences of three characters of such an answer."""
    spoiled: list[float] = Field(default_factory=list)
    """The share of such answers, to each prompt, that are empty or repeat themselves (`preference.sampling`)."""
    samples: list[tuple[str, str]]
    """Some of the prompts with an answer."""
    retention: float | None = None
    """Loss on the retention text relative to that of the base; None: not measured."""
    left_out: Literal["retention", "variety", "loops"] | None = None
    """What keeps it from being the result (`choose`)."""
    learned: AnswerCounts = AnswerCounts()
    """The answers that were sampled to learn from, by the model before the round."""
    seconds: dict[str, float] = Field(default_factory=dict)
    """CPU seconds of sampling, scoring, learning and judging."""

    @property
    def name(self) -> str:
        """The round, and the strength if it is not the whole update."""
        return f"{self.round}" if self.strength == 1 else f"{self.round} × {self.strength:g}"

    @property
    def reward(self) -> float:
        """Mean reward on the validation prompts; without such, later and stronger is better."""
        return fmean(self.validation) if self.validation else self.round + self.strength


def still_gains(rounds: Sequence[RewardRound]) -> bool:
    """Return whether another round may gain: after the third one, unless the last two have gained nothing certain.

    One round alone says too little: a reward that stands still for a round can rise again. Without an interval, such as
    without validation prompts, this is unknown, and there is another one.
    """
    if len(rounds) < _FEWEST_ROUNDS:
        return True
    gains = [after - before for before, after in zip(rounds[-3].validation, rounds[-1].validation, strict=True)]
    interval = mean_interval(gains)
    return interval is None or interval[0] > 0


def choose_round(judged: Sequence[RewardRound], forgetting: float) -> RewardRound:
    """Return the model to keep: of those that are not left out, the first one with the highest reward.

    `left_out` of each one is set to the reason, or to None. A model is left out if the loss on the retention text is
    above that of the base by more than the share `forgetting`, if its answers have less than three quarters of the
    variety of those at the start, or if the share of them that are empty or repeat themselves has certainly risen by
    more than a twentieth. The first one of `judged`, the start, is returned if nothing is better.
    """
    start = judged[0]
    for one in judged:
        rises = [after - before for before, after in zip(start.spoiled, one.spoiled, strict=True)]
        interval = mean_interval(rises) or (fmean(rises or [0.0]), 0.0)
        one.left_out = "loops" if interval[0] > _MORE_SPOILED else None
        if one.distinct < _LEAST_VARIETY * start.distinct:
            one.left_out = "variety"
        if (one.retention or 1.0) > 1 + forgetting:
            one.left_out = "retention"
    return max((one for one in judged if one.left_out is None), key=lambda one: one.reward)
