"""What a run shows while it goes: a live line in a terminal, a few plain lines elsewhere. All on standard error."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

_PLAIN_LINES = 10


class RunProgress:
    """The display of one run; a context manager."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self._progress = Progress(
            TextColumn("[bold]step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=24),
            TextColumn("loss {task.fields[loss]}"),
            TextColumn("held-out perplexity {task.fields[perplexity]}"),
            TextColumn("{task.fields[speed]} tokens/s"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._task = self._progress.add_task("train", total=None, loss="–", perplexity="–", speed="–", visible=False)

    def __enter__(self) -> "RunProgress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    @contextmanager
    def stage(self, label: str, total: int | None) -> Iterator[Callable[[int], None]]:
        """A bar for one stage, of `total` things (or it is not known); yields what to call with each amount done.

        Silent while steps are shown.
        """
        hidden = self._progress.live.is_started or not self.console.is_terminal
        with Progress(console=self.console, transient=True, disable=hidden) as progress:
            task = progress.add_task(label, total=total)
            yield lambda done: progress.advance(task, done)

    def say(self, line: str) -> None:
        """One line above the live display."""
        self.console.print(Text(line), soft_wrap=True)

    def begin(self, total: int, done: int) -> None:
        """Steps of the whole run, and those already done when it goes on from a checkpoint."""
        self._progress.update(self._task, total=total, completed=done, visible=True)
        self._progress.start()

    def step(self, step: int, total: int, loss: float, tokens_per_second: float) -> None:
        """An optimiser step is done."""
        self._progress.update(self._task, completed=step, loss=f"{loss:.3f}", speed=f"{tokens_per_second:,.0f}")
        if not self.console.is_terminal and step % max(1, total // _PLAIN_LINES) == 0:
            self.say(f"step {step}/{total}  loss {loss:.3f}  {tokens_per_second:,.0f} tokens/s")

    def evaluation(self, entry: dict[str, Any]) -> None:
        """A measurement on the held-out text."""
        self._progress.update(self._task, perplexity=f"{entry['perplexity']:,.2f}")
        self.say(
            f"step {entry['step']}  held-out loss {entry['loss']:.4f}  perplexity {entry['perplexity']:,.2f}  "
            f"bits/char {entry['bits_per_char']:.3f}"
        )

    def sample(self, entry: dict[str, Any]) -> None:
        """What the model wrote."""
        line = Text(f"step {entry['step']}  ")
        line.append(entry["prompt"], style="bold")
        line.append(entry["text"].rstrip().replace("\n", "⏎"), style="cyan")
        self.console.print(line, soft_wrap=True)
