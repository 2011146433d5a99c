"""Intervals that say how much of a figure is the luck of which documents were held out.

The documents are drawn anew, with replacement, many times; between the 2.5th and the 97.5th percentile of the figures
that come out lies the interval (B. Efron, "Bootstrap Methods: Another Look at the Jackknife", 1979). Whole documents
are drawn, since what stands in one document is of a kind. With few documents an interval is too narrow.
"""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Interval: TypeAlias = tuple[float, float]
Score: TypeAlias = tuple[float, int, int]
"""Of one document: summed negative log-likelihood in nats, tokens, characters."""

_DRAWS = 2000


def loss_interval(scores: Sequence[Score]) -> Interval | None:
    """95 % interval of the mean loss of a token; None for fewer than two documents."""
    return _interval(scores, 1)


def bits_interval(scores: Sequence[Score]) -> Interval | None:
    """95 % interval of the bits per character; None for fewer than two documents."""
    found = _interval(scores, 2)
    return found and (found[0] / float(np.log(2)), found[1] / float(np.log(2)))


def change_interval(before: Sequence[Score], after: Sequence[Score]) -> Interval | None:
    """95 % interval of NLL after / NLL before - 1, the same documents drawn for both; None for fewer than two.

    It is the relative change of loss and of bits per character alike.
    """
    if len(before) < 2 or len(before) != len(after):
        return None
    drawn = _draw(np.array([[one[0], other[0]] for one, other in zip(before, after, strict=True)]))
    return _percentiles(drawn[:, 1] / drawn[:, 0] - 1)


def _interval(scores: Sequence[Score], per: int) -> Interval | None:
    if len(scores) < 2:
        return None
    drawn = _draw(np.array(scores))
    return _percentiles(drawn[:, 0] / drawn[:, per])


def _draw(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Column sums of documents drawn with replacement, [draws, columns]; the same documents for each call."""
    count = len(scores)
    times = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=_DRAWS)
    return times @ scores


def _percentiles(figures: npt.NDArray[np.float64]) -> Interval:
    low, high = np.percentile(figures, [2.5, 97.5])
    return float(low), float(high)
