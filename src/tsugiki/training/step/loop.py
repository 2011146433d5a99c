"""The training loop of every run.

For each optimiser step: gradients of its rows, on all processes (`training.step.gradients`); update; log; callbacks,
which evaluate, sample and write the record (`training.run.evaluation_callback`); checkpoint
(`training.step.checkpoint`).

accelerate provides the device, the processes and the trackers; transformers provides the schedules. All processes run
this loop with the same parameters and make the same updates.

After a signal (`io.system`) or a loss that is not a number, a run ends between two steps, so that its state is
complete. All processes read losses, and stop requests of the others, after the same steps. A processor has them at
once, so they are read after every step. Reading from an accelerator makes the loop wait, so there are some seconds
between two readings. Then a signal or a loss that is not a number soon ends the run.

`examples/training_loop.py` is the same loop in one file, without the fast paths; a test compares the losses of the two.
"""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from tsugiki.annotations import PreTrainedModel
from tsugiki.errors import Interrupted
from tsugiki.io.system import STOP_SIGNALS
from tsugiki.language import _
from tsugiki.training.model.sharding import check_optimizer
from tsugiki.training.record.run_record import LossPoint, PreferencePoint
from tsugiki.training.step.checkpoint import Progress
from tsugiki.training.step.gradients import Gradients, not_finite, overflow
from tsugiki.training.tools.processes import on_main


class Callback:
    """The base class of callbacks, whose methods are called on every process, in the order of the callbacks."""

    def on_train_begin(self, loop: "TrainingLoop") -> None:
        """Called before the first step, or before the first step of a resumed run."""

    def on_step_end(self, loop: "TrainingLoop") -> None:
        """Called after a step, before its checkpoint. `loop.progress.stopped = True` ends the run."""

    def on_train_end(self, loop: "TrainingLoop") -> None:
        """Called after the last step and its checkpoint."""


@dataclass
class OpenSchedule:
    """The learning rate of a run whose length is open: constant after the warm-up, then falling to 0.

    "Warm-up, stable, decay" (Hägele et al. 2024, arXiv:2405.18392): the length need not be known before the rate falls.
    Checkpoints have these numbers in the state of the schedule.
    """

    warmup: int
    """Steps over which the rate rises."""
    steps: int
    """Steps of the whole run: the most that it can have, until it is known when the rate falls."""
    decay_start: int
    """The step after which the rate falls."""
    by_validation: bool = False
    """Whether the validation text has ended the run, by `end_after`."""

    def __call__(self, step: int) -> float:
        """Return the learning rate at a step (from 0), relative to its peak."""
        if step < self.warmup:
            return step / self.warmup
        return min(1.0, max(0.0, (self.steps - step) / max(1, self.steps - self.decay_start)))

    def end_after(self, step: int) -> None:
        """Let the rate fall after a step, over a quarter of the steps until then."""
        self.steps, self.decay_start, self.by_validation = step + math.ceil(step / 4), step, True


@dataclass
class TrainingLoop:
    """A prepared run: everything that its steps need."""

    accelerator: Accelerator
    model: PreTrainedModel
    gradients: Gradients
    optimizer: Optimizer
    schedule: LRScheduler
    steps: int
    """Optimiser steps of the whole run."""
    max_grad_norm: float
    """0: no limit."""
    log_steps: int
    """Steps between two points of the loss curve. The loop waits for an accelerator at these and at `Readings`."""
    save_steps: int
    """Steps between checkpoints."""
    open_schedule: OpenSchedule | None = None
    """What `schedule` computes if the length is open; None: it is known."""
    save: Callable[["TrainingLoop"], None] = lambda loop: None
    """Writes a checkpoint."""
    progress: Progress = field(default_factory=Progress)
    callbacks: list[Callback] = field(default_factory=list)
    step_loss: float = 0.0
    """Loss of the last step that was read, in nats per token."""
    learning_rate: float = 0.0
    """Learning rate of the last step."""
    _saved_step: int = 0  # of the newest checkpoint
    _unread: list[tuple[Tensor, int]] = field(default_factory=list)
    """Results of `Gradients.step` that have not been read from the device, and the target tokens of their steps."""
    _stop_requests: float = 0.0  # number of processes that request the end of the run

    def run(self) -> None:
        """Train until the last step. A signal ends the run between two steps, after a checkpoint (`Interrupted`)."""
        check_optimizer(self.model, self.optimizer)
        with StopSignals(raises=self.accelerator.num_processes == 1) as signals:
            self._saved_step = self.progress.step
            try:
                for callback in self.callbacks:
                    callback.on_train_begin(self)
                if self.progress.callbacks_pending:
                    self.step_loss = self.progress.last_loss
                    self._call_back()
                readings = Readings(self.accelerator, self.progress.step)
                while self.progress.step < self.steps and not self.progress.stopped:
                    with signals.deferred():
                        self.train_step(stop=signals.received is not None)
                        if readings.are_due(self.progress.step) or self._is_due(self.log_steps):
                            self.read_losses()
                            readings.done(self.progress.step)
                        if self._is_due(self.log_steps):
                            self._log()
                    self._call_back()
                    if self._is_due(self.save_steps) or self.progress.is_best or self.progress.stopped:
                        with signals.deferred():
                            self._save()
                    if self._stop_requests:
                        raise Interrupted(signals.received or signal.SIGTERM)
                for callback in self.callbacks:
                    callback.on_train_end(self)
            except Interrupted as stop:
                with signals.deferred():
                    raise self._interrupted(stop.number) from None

    def _call_back(self) -> None:
        for callback in self.callbacks:
            callback.on_step_end(self)
        self.progress.callbacks_pending = False

    def _save(self) -> None:
        if self.progress.step != self._saved_step:
            self.read_losses()
            self.save(self)
            self._saved_step = self.progress.step

    def _interrupted(self, number: int) -> Interrupted:
        """Write a checkpoint, and return the exception that ends the run."""
        step = self.progress.step
        self._save()
        written = _("a checkpoint of step {step} of {steps} was written", step=step, steps=self.steps)
        return Interrupted(number, written if step else _("no step was done"))

    def train_step(self, stop: bool = False) -> None:
        """Make one optimiser step. Its loss stays on the device until `read_losses`.

        `stop`: this process requests that the run ends after the step.
        """
        started = time.perf_counter()
        step = self.progress.step
        results = self.gradients.step(step, stop)
        self.update()
        self.learning_rate = self.optimizer.param_groups[0]["lr"]
        self.schedule.step()
        self._unread.append((results, self.gradients.batches.target_tokens(step)))
        self.progress.step += 1
        self.progress.callbacks_pending = True
        self.progress.seconds += time.perf_counter() - started

    def update(self) -> None:
        """Clip the gradients, and make a step of the optimiser."""
        scaler = self.gradients.scaler  # does nothing unless the model computes in float16
        scaler.unscale_(self.optimizer)
        if self.max_grad_norm:
            nn.utils.clip_grad_norm_(self.gradients.weights, self.max_grad_norm)
        scaler.step(self.optimizer)  # no step if a gradient has overflowed; the next one then has a smaller scale
        scaler.update()

    def read_losses(self) -> None:
        """Add the losses of the steps since the last call to the progress. This waits for the device."""
        if not self._unread:
            return
        started, scaler = time.perf_counter(), self.gradients.scaler
        requests, losses, *figures = torch.stack([results for results, _ in self._unread]).T.cpu().tolist()
        self._stop_requests += sum(requests)
        first = self.progress.step - len(losses) + 1
        for step, (loss, (_result, tokens)) in enumerate(zip(losses, self._unread, strict=True), first):
            if not math.isfinite(loss):
                raise not_finite(loss, step, float(self.schedule.base_lrs[0]), scaler.is_enabled())
            self.progress.nll += loss * tokens
            self.progress.tokens += tokens
        if scaler.get_scale() < 1:
            raise overflow(step)
        self._unread.clear()
        self.progress.unlogged, self.step_loss = self.progress.unlogged + losses, losses[-1]
        self.progress.unlogged_figures += [list(step) for step in zip(*figures, strict=True)]
        self.progress.seconds += time.perf_counter() - started

    def _log(self) -> None:
        """Add a point to the loss curve, the mean of the steps since the last one, and send it to the trackers."""
        unlogged = self.progress.unlogged
        loss, rate = sum(unlogged) / len(unlogged), self.learning_rate
        unlogged.clear()
        self.progress.loss_curve.append(LossPoint(step=self.progress.step, loss=loss, learning_rate=rate))
        if figures := self.progress.unlogged_figures:
            sums = [sum(values) for values in zip(*figures, strict=True)]
            self.progress.preference_curve.append(PreferencePoint.from_sums(self.progress.step, sums))
            figures.clear()
        values = {"loss": loss, "learning_rate": rate, "tokens_per_second": self.progress.tokens_per_second}
        self.accelerator.log(values, step=self.progress.step)

    def end_soon(self) -> None:
        """Let the learning rate of a run of open length fall, unless it does already, and end the run then."""
        if self.open_schedule is not None and self.progress.step < self.open_schedule.decay_start:
            self.open_schedule.end_after(self.progress.step)
            self.steps = self.open_schedule.steps

    def _is_due(self, every: int) -> bool:
        """Return whether the step that was just done is the last one or a multiple of `every`."""
        return self.progress.step == self.steps or self.progress.step % every == 0


_SECONDS_BETWEEN = 5.0


class StopSignals:
    """Receives signals within its `with` block. A second signal ends the process without waiting for the step.

    If it `raises`, a signal is an `Interrupted`; within `deferred`, at the end of that block. Several processes must
    stop after the same step, so they only look at `received`.
    """

    def __init__(self, raises: bool) -> None:
        self.received: int | None = None
        """The number of the signal that has arrived."""
        self._raises = raises
        self._deferred = False
        self._former: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():  # Python allows handlers there only
            self._former = {number: signal.signal(number, self._receive) for number in STOP_SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Delay the exception for a signal to the end of the block."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        if self.received is not None and self._raises:
            raise Interrupted(self.received)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = number
        if self._raises and not self._deferred:
            raise Interrupted(number)


class Readings:
    """When losses are read."""

    def __init__(self, accelerator: Accelerator, step: int) -> None:
        """`step`: the number of steps done so far. All processes must create it at the same step."""
        self.accelerator = accelerator
        self._step, self._time, self._next = step, time.monotonic(), step + 1

    def are_due(self, step: int) -> bool:
        """Return whether losses must be read after `step` steps."""
        return self.accelerator.device.type == "cpu" or step >= self._next

    def done(self, step: int) -> None:
        """Choose the next step after losses were read, by the clock of the main process.

        The number of steps between two readings at most doubles, because only a reading shows how long steps take.
        """
        if self.accelerator.device.type == "cpu":
            return
        steps, seconds = max(1, step - self._step), time.monotonic() - self._time
        self._step, self._time = step, time.monotonic()
        chosen = max(1, min(2 * steps, int(_SECONDS_BETWEEN * steps / max(seconds, 1e-9))))
        self._next = step + on_main(self.accelerator, lambda: chosen)
