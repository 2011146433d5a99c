"""The check for a training loss that rises: the rate is too high, and the run begins again with a lower one."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tsugiki.language import _
from tsugiki.training.step.loop import Callback, TrainingLoop

LOWER = 1 / 3
"""Factor on the learning rate when a run starts again."""
MOST_RESTARTS = 2
_RISE = 1.2  # of the mean loss of the last steps, relative to that of the first ones
_FEWEST_STEPS, _FEWEST_ROWS = 3, 12  # for the means; the losses of single rows differ from each other


class RateTooHighError(Exception):
    """The run begins again with a lower rate. The message says why, for the log of the run."""

    def __init__(self, step: int) -> None:
        super().__init__(_("the training loss had risen by more than 20 % at step {step}").format(step=step))
        self.step = step


@dataclass(frozen=True)
class DivergenceCheck(Callback):
    """Ends a run that diverges with a `RateTooHighError`."""

    rows: int
    """Rows of an optimiser step."""

    def on_step_end(self, loop: TrainingLoop) -> None:
        """Compare the losses of the last steps with those of the first ones."""
        if diverges([point.loss for point in loop.progress.loss_curve], self.rows):
            raise RateTooHighError(loop.progress.step)


def diverges(losses: Sequence[float], rows: int) -> bool:
    """Return whether the mean loss of the last steps is more than 20 % above that of the first ones.

    `losses` are those of all steps so far, and `rows` are the rows of an optimiser step.
    """
    count = max(_FEWEST_STEPS, math.ceil(_FEWEST_ROWS / rows))
    return len(losses) >= 2 * count and sum(losses[-count:]) > _RISE * sum(losses[:count])
