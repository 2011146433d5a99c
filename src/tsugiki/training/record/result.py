"""The results of evaluations: loss, perplexity and bits per character, or correct answers, with their intervals."""

import math
from collections.abc import Sequence
from dataclasses import replace

from pydantic import BaseModel, ConfigDict, computed_field

from tsugiki.language import _, marked, ngettext
from tsugiki.training.record.interval import (
    Change,
    Interval,
    Score,
    bits_interval,
    change,
    loss_interval,
    paired_interval,
    sum_groups,
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
    ).format(count=result.unknown_tokens)


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
