"""Intervals: how much a figure depends on which documents were held out.

A figure such as the loss is a ratio of two sums over documents, and its standard error is that of the jackknife: each
document is left out in turn, and the squares of the changes of the ratio are added (J. G. MacKinnon and H. White, "Some
heteroskedasticity-consistent covariance matrix estimators", 1985, HC3). The interval is the ratio plus and minus its
error times Student's t. The degrees of freedom are those of R. M. Bell and D. F. McCaffrey ("Bias reduction in standard
errors for linear regression with multi-stage samples", 2002): n - 1 for n documents of one length, fewer if a few long
ones have most of the text. A bootstrap would be too narrow with few documents (`benchmarks.quality.coverage`).

The tokens of a document are not independent of each other, so whole documents are counted, and near-duplicates together
as one. Neither are pairs of answers to one prompt: their share has the interval of fewer pairs (`effective_trials`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Interval: TypeAlias = tuple[float, float]
"""Lower and upper end of a 95 % interval."""
Score: TypeAlias = tuple[float, int, int]
"""Score of one document: summed negative log-likelihood in nats, number of tokens, number of characters."""

FEWEST_DOCUMENTS = 3
"""From two documents, an interval would be 12.7 standard errors wide on each side, which says nothing."""

_NORMAL = 1.959963984540054  # the 97.5th percentile of the standard normal distribution
# The logarithm of t / normal percentile, as a polynomial in 1 / degrees of freedom; t is right to 4 digits from 1 on.
_LOG_T = (0.1008, -0.3165, 0.1666, 0.7082, 1.2101, 0.0)


@dataclass(frozen=True)
class Change:
    """The relative change of a figure between two evaluations."""

    relative: float
    """After / before - 1; NaN if it cannot be computed, as of different documents."""
    interval: Interval | None
    """95 % interval over documents; None for fewer than three."""
    documents: int
    """Number of documents after the change; near-duplicates count as one."""


def sum_groups(scores: Sequence[Score], groups: Sequence[int]) -> list[Score]:
    """Return the sums of the scores in each group, in the order of the groups' first documents.

    `groups` has the number of the group of every document; empty: every document is a group of its own.
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
    """Return the 95 % interval of the mean loss per token; None for fewer than three documents."""
    return _ratio_interval([(nll, tokens) for nll, tokens, _characters in scores])


def bits_interval(scores: Sequence[Score]) -> Interval | None:
    """Return the 95 % interval of the bits per character; None for fewer than three documents."""
    return _ratio_interval([(nll / math.log(2), characters) for nll, _tokens, characters in scores])


def change(before: float, after: float, scores_before: Sequence[Score], scores_after: Sequence[Score]) -> Change:
    """Return the change of a figure that is proportional to the NLL, such as the loss or the bits per character.

    `before` and `after` are the figures of two evaluations; the scores are of their documents.
    """
    if [score[2] for score in scores_before] != [score[2] for score in scores_after]:
        return Change(math.nan, None, len(scores_after))  # a record is too long for the context of one of the models
    finite = before and math.isfinite(before) and math.isfinite(after)
    relative = after / before - 1 if finite else math.nan
    return Change(relative, change_interval(scores_before, scores_after), len(scores_after))


def change_interval(before: Sequence[Score], after: Sequence[Score]) -> Interval | None:
    """Return the 95 % interval of NLL after / NLL before - 1; None for fewer than three documents."""
    if len(before) != len(after):
        return None
    ratio = _ratio_interval([(other[0], one[0]) for one, other in zip(before, after, strict=True)])
    return ratio and (ratio[0] - 1, ratio[1] - 1)


def mean_interval(values: Sequence[float]) -> Interval | None:
    """Return the 95 % interval of the mean of independent values by Student's t; None for fewer than three."""
    if len(values) < FEWEST_DOCUMENTS:
        return None
    degrees = np.array(len(values) - 1.0)
    half = float(t_percentile(degrees) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return float(np.mean(values)) - half, float(np.mean(values)) + half


def ratio_intervals(parts: npt.NDArray[np.float64], wholes: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the ends of the 95 % interval of sum(parts) / sum(wholes) [2, ...]; the lower one is at least 0.

    `parts` are such as the NLL of each document [..., documents], and `wholes` such as its tokens.
    """
    ratio, half = _jackknife(parts, wholes)
    return np.stack([np.maximum(ratio - half, 0), ratio + half])


def _jackknife(
    parts: npt.NDArray[np.float64], wholes: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return sum(parts) / sum(wholes), and half of the length of its 95 % interval; arguments: `ratio_intervals`."""
    part, whole = parts.sum(-1, keepdims=True), wholes.sum(-1, keepdims=True)
    changes = (part - parts) / (whole - wholes) - part / whole  # when one document is left out
    half = t_percentile(_degrees_of_freedom(wholes / whole)) * np.sqrt((changes**2).sum(-1))
    return (part / whole)[..., 0], half


def t_percentile(degrees: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the 97.5th percentile of Student's t distribution, for one degree of freedom or more."""
    percentile: npt.NDArray[np.float64] = _NORMAL * np.exp(np.polyval(_LOG_T, 1 / degrees))
    return percentile


def _degrees_of_freedom(shares: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return tr(C)^2 / tr(C^2), where C is the covariance of the changes if the documents' ratios vary equally.

    With h the shares of the documents [..., documents], and s the sum of their squares, element ij of C is
    h_i h_j / ((1 - h_i) (1 - h_j)) times (1 if i = j, otherwise 0) + s - h_i - h_j.
    """
    weights = (shares / (1 - shares)) ** 2
    squares = (shares**2).sum(-1, keepdims=True)
    centred = squares - 2 * shares
    zeroth, first, second = ((weights * shares**power).sum(-1) for power in range(3))
    trace = (weights * (1 + centred)).sum(-1)
    s = squares[..., 0]
    off_diagonal = (s * zeroth) ** 2 - 4 * s * zeroth * first + 2 * zeroth * second + 2 * first**2
    trace_of_square = (weights**2 * (1 + 2 * centred)).sum(-1) + off_diagonal
    degrees: npt.NDArray[np.float64] = trace**2 / trace_of_square
    return degrees


def wilson_interval(successes: float, trials: float) -> Interval:
    """Return the 95 % interval of a share of trials (E. B. Wilson, "Probable Inference", 1927)."""
    z, share = _NORMAL, successes / trials
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return max(0.0, centre - half), min(1.0, centre + half)


def effective_trials(values: Sequence[float], groups: Sequence[int]) -> float:
    """Return the number of independent values whose mean is as certain as that of these values.

    Values of one group may depend on each other, such as whether pairs with the same prompt are right; `groups` has the
    group of each value (empty: all are independent). Their jackknife error, and Student's t for its degrees of freedom,
    give the number (E. L. Korn and B. I. Graubard, "Confidence intervals for proportions with small expected number of
    positive counts estimated from survey data", 1998). It is at most that of the values. Wilson's interval for it is
    compared with others in C. Franco et al., "Comparative study of confidence intervals for proportions in complex
    sample surveys", 2019.
    """
    _names, labels = np.unique(groups, return_inverse=True)
    sizes = np.bincount(labels)
    if len(sizes) in (0, 1, len(values)):
        return 1.0 if len(sizes) == 1 else float(len(values))
    _mean, half = _jackknife(np.array(np.bincount(labels, values), float), np.array(sizes, float))
    if not half:  # the groups are equal
        return float(len(sizes))
    return min(float(np.var(values) * (_NORMAL / half) ** 2), float(len(values)))


def paired_interval(pairs: Sequence[tuple[bool, bool]], groups: Sequence[int] = ()) -> Interval:
    """Return the 95 % interval of the change of a share between two measurements of the same trials.

    `pairs` has whether each trial succeeded before and after; at least one. The interval combines the two Wilson
    intervals by the correlation of the measurements (R. G. Newcombe, "Improved confidence intervals for the difference
    between binomial proportions based on paired data", 1998, method 10). `groups` is that of `effective_trials`.
    """
    trials = effective_trials([float(after) - before for before, after in pairs], groups)
    each = trials / len(pairs)
    both, neither = each * pairs.count((True, True)), each * pairs.count((False, False))
    lost, won = each * pairs.count((True, False)), each * pairs.count((False, True))
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


def _ratio_interval(pairs: Sequence[tuple[float, float]]) -> Interval | None:
    """Return `ratio_intervals` for one set of documents; None for fewer than three, or if it is not finite."""
    if len(pairs) < FEWEST_DOCUMENTS:
        return None
    with np.errstate(all="ignore"):
        low, high = ratio_intervals(*np.array(pairs, float).T).tolist()
    return (low, high) if math.isfinite(low) and math.isfinite(high) else None
