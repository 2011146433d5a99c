"""Bootstrap intervals: how much a figure depends on which documents were held out.

The documents are resampled with replacement many times. The interval lies between the 2.5th and the 97.5th percentile
of the resulting figures (B. Efron, "Bootstrap Methods: Another Look at the Jackknife", 1979). Whole documents are
resampled, because the tokens of one document are not independent of each other. Near-duplicates are resampled together
for the same reason, as one document. With few documents the interval is too narrow.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Interval: TypeAlias = tuple[float, float]
"""Lower and upper end of a 95 % interval."""
Score: TypeAlias = tuple[float, int, int]
"""Score of one document: summed negative log-likelihood in nats, number of tokens, number of characters."""

_NORMAL = 1.959963984540054  # the 97.5th percentile of the standard normal distribution
_SAMPLES = 2000
_MAX_COUNTS = 10_000_000  # documents times samples; with more than 5,000 documents, fewer samples are drawn


@dataclass(frozen=True)
class Change:
    """The relative change of a figure between two evaluations."""

    relative: float
    """After / before - 1; NaN if it cannot be computed."""
    interval: Interval | None
    """95 % interval over documents; None if the two did not score the same documents, or scored fewer than two."""
    documents: int
    """Number of documents after the change; near-duplicates count as one."""


def sum_groups(scores: Sequence[Score], groups: Sequence[int]) -> list[Score]:
    """Return the sums of the scores in each group, in the order of the groups' first documents.

    Args:
        scores: the score of every document.
        groups: for every document, the number of its group; empty: every document is a group of its own.
    """
    if not groups:
        return list(scores)
    sums: dict[int, list[Score]] = {}
    for score, number in zip(scores, groups, strict=True):
        sums.setdefault(number, []).append(score)
    return [
        (math.fsum(score[0] for score in group), sum(score[1] for score in group), sum(score[2] for score in group))
        for group in sums.values()
    ]


def loss_interval(scores: Sequence[Score]) -> Interval | None:
    """Return the 95 % interval of the mean loss per token; None for fewer than two documents."""
    return _ratio_interval(scores, 1)


def bits_interval(scores: Sequence[Score]) -> Interval | None:
    """Return the 95 % interval of the bits per character; None for fewer than two documents."""
    nats = _ratio_interval(scores, 2)
    return nats and (nats[0] / float(np.log(2)), nats[1] / float(np.log(2)))


def change(before: float, after: float, scores_before: Sequence[Score], scores_after: Sequence[Score]) -> Change:
    """Return the change of a figure that is proportional to the NLL, such as the loss or the bits per character.

    Args:
        before: the figure of the first evaluation.
        after: the figure of the second evaluation.
        scores_before: the documents of the first evaluation.
        scores_after: the documents of the second evaluation.
    """
    finite = before and math.isfinite(before) and math.isfinite(after)
    same = [score[2] for score in scores_before] == [score[2] for score in scores_after]
    interval = change_interval(scores_before, scores_after) if same else None
    if interval and not all(map(math.isfinite, interval)):
        interval = None
    return Change(after / before - 1 if finite else math.nan, interval, len(scores_after))


def change_interval(before: Sequence[Score], after: Sequence[Score]) -> Interval | None:
    """Return the 95 % interval of NLL after / NLL before - 1; None for fewer than two documents.

    Every resample draws the same documents for both.
    """
    if len(before) < 2 or len(before) != len(after):
        return None
    sums = _resample(np.array([[one[0], other[0]] for one, other in zip(before, after, strict=True)], float))
    return _percentiles(sums[:, 1] / sums[:, 0] - 1)


def wilson_interval(successes: int, trials: int) -> Interval:
    """Return the 95 % interval of a share of trials (E. B. Wilson, "Probable Inference", 1927)."""
    z, share = _NORMAL, successes / trials
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return max(0.0, centre - half), min(1.0, centre + half)


def paired_interval(pairs: Sequence[tuple[bool, bool]]) -> Interval:
    """Return the 95 % interval of the change of a share between two measurements of the same trials.

    It combines the two Wilson intervals by the correlation of the measurements (R. G. Newcombe, "Improved confidence
    intervals for the difference between binomial proportions based on paired data", 1998, method 10).

    Args:
        pairs: whether each trial succeeded before and after; at least one.
    """
    trials = len(pairs)
    both, neither = pairs.count((True, True)), pairs.count((False, False))
    lost, won = pairs.count((True, False)), pairs.count((False, True))
    before, after = (both + lost) / trials, (both + won) / trials
    (low_before, high_before), (low_after, high_after) = (
        wilson_interval(both + lost, trials),
        wilson_interval(both + won, trials),
    )
    product = (both + lost) * (neither + won) * (both + won) * (neither + lost)
    covariance: float = both * neither - won * lost
    if covariance > 0:
        covariance = max(covariance - trials / 2, 0)
    correlation = covariance / math.sqrt(product) if product else 0.0

    def distance(one: float, other: float) -> float:
        return math.sqrt(max(one * one - 2 * correlation * one * other + other * other, 0))

    change_ = after - before
    return (
        change_ - distance(after - low_after, high_before - before),
        change_ + distance(high_after - after, before - low_before),
    )


def _ratio_interval(scores: Sequence[Score], per: int) -> Interval | None:
    """Return the interval of NLL per token (`per` 1) or per character (`per` 2)."""
    if len(scores) < 2:
        return None
    sums = _resample(np.array(scores, float))
    return _percentiles(sums[:, 0] / sums[:, per])


def _resample(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the column sums of each resample [samples, columns]; every call draws the same documents."""
    return _counts(len(scores)) @ scores


@lru_cache(maxsize=1)
def _counts(documents: int) -> npt.NDArray[np.float64]:
    """Return how often each document is drawn in each sample [samples, documents]."""
    samples = min(_SAMPLES, max(_MAX_COUNTS // documents, 1))
    generator = np.random.default_rng(0)
    return generator.multinomial(documents, np.full(documents, 1 / documents), size=samples).astype(np.float64)


def _percentiles(figures: npt.NDArray[np.float64]) -> Interval:
    low, high = np.percentile(figures, [2.5, 97.5])
    return float(low), float(high)
