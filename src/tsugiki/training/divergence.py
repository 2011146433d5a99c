"""A run whose training loss rises is divergent: its learning rate is too high for this model and text.

A run with `learning_rate: auto` then starts again with a third of the rate. Only the losses of the steps decide, so a
run that is resumed decides the same.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tsugiki.language import _
from tsugiki.lora.graft import trainable_parameters
from tsugiki.training.loop import Callback, TrainingLoop

LOWER = 1 / 3
"""Factor on the learning rate when a run starts again."""
MOST_RESTARTS = 2
_RISE = 1.2  # of the mean loss of the last steps, relative to that of the first ones
_FEWEST_STEPS, _FEWEST_ROWS = 3, 12  # for the means; the losses of single rows differ from each other


class DivergedError(Exception):
    """The loss has risen. The message is for the log of the run."""

    def __init__(self, step: int) -> None:
        super().__init__(_("the training loss had risen by more than 20 % at step {step}").format(step=step))
        self.step = step


@dataclass(frozen=True)
class DivergenceCheck(Callback):
    """Ends a run that diverges with a `DivergedError`."""

    rows: int
    """Rows of an optimiser step."""

    def on_step_end(self, loop: TrainingLoop) -> None:
        """Compare the losses of the last steps with those of the first ones."""
        if diverges([point.loss for point in loop.progress.loss_curve], self.rows):
            raise DivergedError(loop.progress.step)


def diverges(losses: Sequence[float], rows: int) -> bool:
    """Return whether the mean loss of the last steps is more than 20 % above that of the first ones.

    Args:
        losses: the losses of all steps so far.
        rows: rows of an optimiser step.
    """
    count = max(_FEWEST_STEPS, math.ceil(_FEWEST_ROWS / rows))
    return len(losses) >= 2 * count and sum(losses[-count:]) > _RISE * sum(losses[:count])


def trained_values(model: nn.Module) -> dict[str, Tensor]:
    """Return name -> copy of each trained parameter."""
    return {name: parameter.detach().clone() for name, parameter in trainable_parameters(model).items()}


def restore_values(model: nn.Module, values: dict[str, Tensor]) -> None:
    """Copy values from `trained_values` back into the model."""
    with torch.no_grad():
        for name, parameter in trainable_parameters(model).items():
            parameter.copy_(values[name])
