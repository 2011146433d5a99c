"""`learning_rate: probe`: find a learning rate with a few rows of the training data.

A range test (Smith, 2015) in which every row is compared with itself: the learning rate rises from step to step, each
step trains on one row, and the loss of the row before the step is compared with its loss before the first step. (The
losses of two rows differ from each other by much more than a learning rate changes them.) As long as what was learned
from the rows before helps with a new row, its loss is lower. The highest learning rate around which the mean of five
rows is not higher is the limit; a fifth of the limit is chosen.

The initial values are then restored, so the run is the same as one with the chosen number as its setting.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tsugiki.errors import TsugikiError
from tsugiki.language import _
from tsugiki.training.automatic import ResolvedConfig, with_values
from tsugiki.training.divergence import restore_values, trained_values
from tsugiki.training.loop import TrainingLoop
from tsugiki.training.record import ProbePoint

ROWS = 30
"""Rows that are trained on at most. Their losses are computed beforehand as well."""
_FROM, _TO = 0.1, 40.0  # relative to the learning rate from the formula
_SHARE_OF_LIMIT = 0.2
_WINDOW = 5  # rows of the moving average
_FAR_ABOVE = 1.2  # loss relative to that of the base at which the test ends
_MOST = 100.0  # largest relative loss that is recorded


@dataclass(frozen=True)
class Probe:
    """The result of a range test."""

    points: list[ProbePoint]
    learning_rate: float
    """A fifth of the limit, rounded to two significant digits."""


def trial_settings(config: ResolvedConfig) -> ResolvedConfig:
    """Return the settings of the loop that `probe` uses: one row in a step, and no schedule."""
    return with_values(
        config,
        batch_size=1,
        learning_rate=1.0,
        max_steps=ROWS + 1,
        lr_scheduler_type="constant",
        warmup_ratio=0,
        decay_ratio=None,
    )


def probe(loop: TrainingLoop, formula: float, advance: Callable[[int], None]) -> Probe:
    """Find a learning rate. All processes must call this together. The trained parameters are restored afterwards.

    Args:
        loop: a loop with the settings of `trial_settings`, before its first step.
        formula: the learning rate of the formula (see `train.automatic`); the test goes from 0.1 to 40 times this rate.
        advance: called with the number of rows that are done.

    Raises:
        TsugikiError: the loss rises at the lowest learning rate already.
    """
    before = []
    for row in range(ROWS + 1):
        before.append(float(loop.gradients.step(row)[-1]))
        advance(1)
    initial = trained_values(loop.model)
    own_rates = [group["lr"] for group in loop.optimizer.param_groups]  # LoRA+ has a higher one for B
    rates = [formula * _FROM * (_TO / _FROM) ** (row / (ROWS - 1)) for row in range(ROWS)]
    points: list[ProbePoint] = []
    for row in range(ROWS + 1):
        relative = float(loop.gradients.step(row)[-1]) / before[row]
        if row:
            relative = relative if relative < _MOST else _MOST  # also where it is not a number
            points.append(ProbePoint(learning_rate=rates[row - 1], change=relative - 1))
        if row == ROWS or relative > _FAR_ABOVE:
            break
        for group, rate in zip(loop.optimizer.param_groups, own_rates, strict=True):
            group["lr"] = rate * rates[row]
        loop.update()
        advance(1)
    restore_values(loop.model, initial)
    if len(points) < 2 and points[-1].change > 0:
        raise TsugikiError(
            _(
                "learning_rate probe: the loss rises at the lowest learning rate of the test ({rate:.1g}); look at the "
                "text with `tsugiki preview`, or set a number"
            ).format(rate=rates[0])
        )
    return Probe(points, float(f"{limit(points) * _SHARE_OF_LIMIT:.2g}"))


def limit(points: Sequence[ProbePoint]) -> float:
    """Return the highest learning rate around which the mean change of five rows is not above 0."""
    changes = [point.change for point in points]
    highest = points[0].learning_rate
    for place, point in enumerate(points):
        around = changes[max(0, place - _WINDOW // 2) : place + _WINDOW // 2 + 1]
        if sum(around) <= 0:
            highest = point.learning_rate
    return highest
