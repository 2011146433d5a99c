"""The steps after which the loop reads losses and stop requests from the device: the same steps on all processes.

A processor has them at once, so they are read after every step. Reading from an accelerator makes the loop wait, so
there are some seconds between two readings. Then a signal or a loss that is not a number soon ends the run.
"""

import time

from accelerate import Accelerator

from tsugiki.training.processes import on_main

_SECONDS_BETWEEN = 5.0


class Readings:
    """When losses are read."""

    def __init__(self, accelerator: Accelerator, step: int) -> None:
        """Create it when `step` steps have been done, on all processes together."""
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
