"""The rounds of a run that learns by a reward, as `run.json` has them, and which of them is kept, at which strength.

A strength is a factor on the update of a round's whole adapter, as in `training.choose.decisions`. Each round and each
strength that can be kept was judged by answers of its own: nothing is interpolated.
"""

from collections.abc import Sequence
from statistics import fmean
from typing import Literal

from pydantic import BaseModel, Field

from tsugiki.preference.sampling import AnswerCounts
from tsugiki.training.record.interval import mean_interval

_LEAST_VARIETY = 0.75
"""The share of the start's variety that answers must have."""
_MORE_SPOILED = 0.05
"""How far the share of answers that are empty or repeat themselves may rise, by the lower end of the interval."""
_FEWEST = 4  # rounds, with the start, after which a run may end


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
    if len(rounds) < _FEWEST:
        return True
    gains = [after - before for before, after in zip(rounds[-3].validation, rounds[-1].validation, strict=True)]
    interval = mean_interval(gains)
    return interval is None or interval[0] > 0


def choose(judged: Sequence[RewardRound], forgetting: float) -> RewardRound:
    """Mark what is left out, and return what to keep: the highest reward of the rest; of equal ones, the first one.

    A model is left out if the loss on the retention text is above that of the base by more than the share `forgetting`,
    if its answers have less than three quarters of the variety of those at the start, or if the share of them that are
    empty or repeat themselves has certainly risen by more than a twentieth. The first one of `judged`, the start, is
    returned if nothing is better.
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
