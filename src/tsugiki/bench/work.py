"""The work that every contender is given, and the gate at which it waits for its turn."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tsugiki.bench import memory

if TYPE_CHECKING:
    from torch import Tensor

BATCHES = 256
"""Batches of different rows; then they come again."""
RANK, ALPHA, DROPOUT, LEARNING_RATE = 8, 32, 0.1, 1e-4
"""The chapter's."""
WARM_UP = 2
"""Steps that are not counted."""
PROMPT, NEW_TOKENS = 32, 64
"""Tokens that are given, and that are generated."""


@dataclass(frozen=True)
class Work:
    """Rows of random tokens for a model: `batch` rows of `length` tokens an optimiser step."""

    model: str
    batch: int = 4
    length: int = 512
    seed: int = 0

    @property
    def tokens(self) -> int:
        """Tokens a step."""
        return self.batch * self.length

    def rows(self, vocabulary: int) -> "Tensor":
        """int64 [BATCHES * batch, length], the same for every contender."""
        import torch

        generator = torch.Generator().manual_seed(self.seed)
        return torch.randint(vocabulary, (BATCHES * self.batch, self.length), generator=generator)


class Stopped(BaseException):
    """The parent wants no more steps. No `Exception`, since trainers catch those."""


class StepBarrier:
    """Where a contender waits before each of its steps until it is told to go.

    Args:
        receive: the next line from the parent; empty where it is gone.
        send: a message to the parent.
    """

    def __init__(self, receive: Callable[[], str], send: Callable[[dict[str, Any]], None]) -> None:
        self._receive, self._send = receive, send
        self._notes: dict[str, str] = {}
        self._loaded: int | None = None
        self._began: float | None = None

    def note(self, **notes: str) -> None:
        """What the table is to say of this contender, such as the attention that it was given."""
        self._notes |= notes

    def begin(self) -> None:
        """Wait for the next step, and start the clock. Before the first, everything has to be loaded.

        Raises:
            Stopped: there is none.
        """
        if self._loaded is None:
            memory.reset_peak()
            self._loaded = memory.resident() or 0
            self._send({"ready": self._notes, "loaded": self._loaded or None})
        if self._receive().strip() != "step":
            raise Stopped
        self._began = time.perf_counter()

    def end(self, **found: Any) -> None:
        """Stop the clock, and tell what the step took. Nothing happens where no step has begun."""
        if self._began is None:
            return
        _wait_for_accelerator()
        seconds = time.perf_counter() - self._began
        self._began = None
        self._send({"seconds": seconds, "peak": memory.peak(), "resident": memory.resident(), **found})


def _wait_for_accelerator() -> None:
    import sys

    torch = sys.modules.get("torch")  # MLX does without
    if torch is not None and torch.accelerator.is_available():
        torch.accelerator.synchronize()
