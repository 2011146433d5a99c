"""The rounds of a run that learns by a reward, as `run.json` has them."""

from collections.abc import Sequence
from statistics import fmean

from pydantic import BaseModel, Field

from tsugiki.preference.sampling import AnswerCounts


class RewardRound(BaseModel):
    """A round: answers that were sampled and learned, and what the model is worth after it. Round 0 is the start."""

    round: int
    held_out: list[float]
    """The mean reward of the answers to each held-out prompt."""
    validation: list[float]
    """The same of each validation prompt."""
    length: float
    """Mean number of characters of the answers to these prompts."""
    distinct: float
    """Mean share of different ones among the sequences of three characters of such an answer."""
    samples: list[tuple[str, str]]
    """Some of these prompts with an answer."""
    learned: AnswerCounts = AnswerCounts()
    """The answers that were sampled to learn from, by the model before the round."""
    retention: float | None = None
    """Loss on the retention text relative to that of the base; None: not measured."""
    seconds: dict[str, float] = Field(default_factory=dict)
    """CPU seconds of sampling, scoring, learning and judging."""


def best_round(rounds: Sequence[RewardRound], most_forgotten: float) -> int:
    """Return the round to keep: the one with the highest reward on validation prompts; without such, the last one.

    Rounds after which the loss on the retention text is above that of the base by more than the share `most_forgotten`
    are left out. Of equal ones, the first one is kept. Round 0 means that none is better than the start.
    """
    allowed = [one for one in rounds if one.round == 0 or (one.retention or 1.0) <= 1 + most_forgotten]
    return max(allowed, key=lambda one: fmean(one.validation) if one.validation else one.round).round
