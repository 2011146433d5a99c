"""The workload of all entries, and the barrier at which an entry waits for its next step."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tsugiki.training import memory

if TYPE_CHECKING:
    from torch import Tensor

BATCHES = 256
"""The number of different batches, which are then repeated."""
RANK, ALPHA, DROPOUT, LEARNING_RATE = 8, 32, 0.1, 1e-4
"""The hyperparameters of the textbook chapter."""
WARM_UP, STEPS = 2, 6
"""The numbers of warm-up steps and of counted steps in a block."""


@dataclass(frozen=True)
class Workload:
    """Random tokens for a model: `batch` rows of `length` tokens for each optimiser step; and the adapter's size.

    The entries for PEFT, Trainer, TRL and Tsugiki train an adapter of this size; other entries train one of the default
    size.
    """

    model: str
    batch: int = 4
    length: int = 512
    seed: int = 0
    r: int = RANK
    target_modules: Sequence[str] = ()
    """The last components of the names of the layers with an adapter; empty: Tsugiki's default layers."""

    @property
    def tokens(self) -> int:
        """Tokens of one step."""
        return self.batch * self.length

    def rows(self, vocabulary: int) -> "Tensor":
        """Return int64 token ids [BATCHES * batch, length], the same for every entry."""
        import torch

        generator = torch.Generator().manual_seed(self.seed)
        return torch.randint(vocabulary, (BATCHES * self.batch, self.length), generator=generator)


class StopRequested(BaseException):
    """The parent process requests no more steps. Not an `Exception`, because trainers catch those."""


class StepBarrier:
    """Makes an entry wait before each step until the parent requests it, and reports the step's time and memory."""

    def __init__(self, receive: Callable[[], str], send: Callable[[dict[str, Any]], None]) -> None:
        """`receive` returns the next line from the parent, "" after its end; `send` sends a message to it."""
        self._receive, self._send = receive, send
        self._notes: dict[str, str] = {}
        self._loaded: int | None = None
        self._start: float | None = None

    def note(self, **notes: str) -> None:
        """Add notes on this entry to the table, such as the attention implementation that it uses."""
        self._notes |= notes

    def begin(self) -> None:
        """Wait until the next step is requested, then start the clock; raise `StopRequested` if none is.

        The first call also reports that the model is loaded.
        """
        if self._loaded is None:
            memory.reset_peak()
            self._loaded = memory.resident() or 0
            self._send({"ready": self._notes, "loaded": self._loaded or None})
        if self._receive().strip() != "step":
            raise StopRequested
        self._start = time.perf_counter()

    def end(self, **extra: Any) -> None:
        """Stop the clock and report the step's seconds and memory, with `extra` added. Does nothing before `begin`."""
        if self._start is None:
            return
        wait_for_accelerator()
        seconds = time.perf_counter() - self._start
        self._start = None
        self._send({"seconds": seconds, "peak": memory.peak(), "resident": memory.resident(), **extra})


def wait_for_accelerator() -> None:
    """Wait until the accelerator, if there is one, has finished all queued work."""
    import sys

    torch = sys.modules.get("torch")  # not imported by entries that do not use it, such as MLX
    if torch is not None and torch.accelerator.is_available():
        torch.accelerator.synchronize()
