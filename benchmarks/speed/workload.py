"""The workload of all entries, and the barrier at which an entry waits for its next step."""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tsugiki.training.tools import memory

if TYPE_CHECKING:
    from torch import Tensor

BATCHES, BATCHES_OF_PAIRS = 256, 4
"""The numbers of different batches, which are then repeated. Of pairs there are few, because some entries compute the
log-probabilities of all of them under the reference before the first step."""
RANK, ALPHA, DROPOUT, LEARNING_RATE = 8, 32, 0.1, 1e-4
"""The hyperparameters of the textbook chapter."""
ENDLESS = 1_000_000
"""The number of steps in the trainers' configuration; the benchmark stops them earlier."""
WARM_UP, STEPS = 2, 6
"""The numbers of warm-up steps and of counted steps in a block."""


@dataclass(frozen=True)
class Workload:
    """Random tokens for a model: `batch` rows of `length` tokens for each optimiser step; and the adapter's size.

    With a `prompt`, a step has `batch` pairs of preference tuning. Each of the two answers has `length` tokens together
    with the prompt. All pairs have the same lengths, so nothing is padded.

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
    prompt: int = 0
    """Tokens of the prompt of both answers of a pair; 0: the rows are texts."""

    @property
    def tokens(self) -> int:
        """Tokens of one step of texts."""
        return self.batch * self.length

    @property
    def amount(self) -> int:
        """What the speed counts in one step: pairs, or the tokens of texts."""
        return self.batch if self.prompt else self.tokens

    def rows(self, vocabulary: int) -> "Tensor":
        """Return int64 token ids [BATCHES * batch, length], the same for every entry."""
        import torch

        generator = torch.Generator().manual_seed(self.seed)
        return torch.randint(vocabulary, (BATCHES * self.batch, self.length), generator=generator)

    def pairs(self, vocabulary: int) -> "Tensor":
        """Return int64 token ids [BATCHES_OF_PAIRS * batch, 2, length]: chosen and rejected answers.

        Both answers of a pair begin with the same `prompt` tokens.
        """
        import torch

        generator = torch.Generator().manual_seed(self.seed)
        ids = torch.randint(vocabulary, (BATCHES_OF_PAIRS * self.batch, 2, self.length), generator=generator)
        ids[:, 1, : self.prompt] = ids[:, 0, : self.prompt]
        return ids


class StopRequested(BaseException):
    """The parent process requests no more steps. Not an `Exception`, because trainers catch those."""


class StepBarrier:
    """Makes an entry wait before each step until the parent requests it, and reports the step's time and memory."""

    def __init__(self, receive: Callable[[], str], send: Callable[[dict[str, Any]], None]) -> None:
        """`receive` returns the next line from the parent, "" after its end; `send` sends a message to it."""
        self._receive, self._send = receive, send
        self._notes: dict[str, str] = {}
        self._ready = False
        self._loaded: int | None = None
        self._start: float | None = None

    def note(self, **notes: str) -> None:
        """Add notes on this entry to the table, such as the attention implementation that it uses."""
        self._notes |= notes

    def loaded(self) -> None:
        """Take the memory of the process as that of the loaded model. Without a call, `begin` does it."""
        self._loaded = memory.resident() or 0

    def begin(self) -> None:
        """Wait until the next step is requested, then start the clock; raise `StopRequested` if none is.

        The first call also reports that the entry is ready.
        """
        if not self._ready:
            self._ready = True
            memory.reset_peak()
            if self._loaded is None:
                self.loaded()
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


def seconds_of_pair(seconds: float, pairs: int) -> str:
    """Return the note on how long the log-probabilities of pairs under the reference took."""
    return f"{seconds / pairs:.2f} s a pair"


def wait_for_accelerator() -> None:
    """Wait until the accelerator, if there is one, has finished all queued work."""
    torch = sys.modules.get("torch")  # not imported by entries that do not use it, such as MLX
    if torch is not None and torch.accelerator.is_available():
        torch.accelerator.synchronize()
