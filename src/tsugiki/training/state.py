"""The progress of a run, which checkpoints contain."""

from dataclasses import dataclass, field

from tsugiki.training.record import LossPoint


@dataclass
class Progress:
    """The progress of a run."""

    step: int = 0
    """Number of optimiser steps done."""
    nll: float = 0.0
    """Summed loss of all target tokens so far, in nats."""
    tokens: int = 0
    """Number of target tokens so far, over all processes."""
    seconds: float = 0.0
    """Time spent in steps, without evaluating, sampling and saving."""
    loss_curve: list[LossPoint] = field(default_factory=list)
    unlogged: list[float] = field(default_factory=list)
    """Losses of the steps since the last point of the loss curve."""
    callbacks_pending: bool = False
    """Whether the run was interrupted before all callbacks of the last step had been called."""

    best_step: int | None = None
    """The step with the lowest loss on the validation text; its checkpoint is kept."""
    best_loss: float | None = None
    evaluations_since_best: int = 0
    stopped: bool = False
    """Whether a callback has ended the run before its last step."""

    @property
    def is_best(self) -> bool:
        """Whether the last step is the one with the lowest loss on the validation text."""
        return self.best_step == self.step

    @property
    def last_loss(self) -> float:
        """Loss of the last step, in nats; the mean of several steps if only this was logged."""
        if self.unlogged:
            return self.unlogged[-1]
        return self.loss_curve[-1].loss if self.loss_curve else 0.0

    @property
    def loss(self) -> float:
        """Mean loss per target token over the whole run, in nats."""
        return self.nll / max(self.tokens, 1)

    @property
    def tokens_per_second(self) -> float:
        """Target tokens per second of training."""
        return self.tokens / self.seconds if self.seconds else 0.0
