"""End a run between two optimiser steps, so that its state is complete, after a signal or a loss that is not a number.

Signals are those of `io.system`. All processes read losses, and stop requests of the others, after the same steps. A
processor has them at once, so they are read after every step. Reading from an accelerator makes the loop wait, so there
are some seconds between two readings. Then a signal or a loss that is not a number soon ends the run.
"""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from accelerate import Accelerator

from tsugiki.errors import Interrupted
from tsugiki.io.system import STOP_SIGNALS
from tsugiki.training.tools.processes import on_main

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
