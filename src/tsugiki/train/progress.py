"""Progress of a training run: a live line in a terminal, a few plain lines elsewhere. All on standard error."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from tsugiki.io.progress import ProgressDisplay
from tsugiki.language import _
from tsugiki.train.evaluation.result import StepEvaluation
from tsugiki.train.record import Sample

_PLAIN_LINES = 10  # of a whole run, where standard error is not a terminal


class RunProgress(ProgressDisplay):
    """The display of one run; a context manager."""

    def __init__(self, console: Console | None = None, shown: bool = True) -> None:
        """Create the display; with `shown` False, nothing is printed."""
        self.started = time.monotonic()
        super().__init__(console or Console(stderr=True, highlight=False, quiet=not shown))
        self._progress = Progress(
            TextColumn(f"[bold]{_('step')}"),
            MofNCompleteColumn(),
            BarColumn(bar_width=24),
            TextColumn(_("loss") + " {task.fields[loss]}"),
            TextColumn(_("perplexity") + " {task.fields[perplexity]}"),
            TextColumn("{task.fields[speed]} " + _("tokens/s")),
            TimeRemainingColumn(),
            console=self.console,
            disable=self.is_quiet,
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
        """As in `ProgressDisplay`, but without a bar while the live line of steps is shown."""
        if self._progress.live.is_started:
            yield lambda done: None
        else:
            with super().stage(label, total) as advance:
                yield advance

    def begin(self, total: int, done: int) -> None:
        """Show the live line.

        Args:
            total: optimiser steps of the whole run.
            done: those already done, if the run is resumed.
        """
        self._progress.update(self._task, total=total, completed=done, visible=True)
        self._progress.start()

    def step(self, step: int, total: int, loss: float, tokens_per_second: float) -> None:
        """Show that an optimiser step is done; all tokens count in the speed, also those that are not in the loss."""
        self._progress.update(self._task, completed=step, loss=f"{loss:.3f}", speed=f"{tokens_per_second:,.0f}")
        if self.is_quiet and step % max(1, total // _PLAIN_LINES) == 0:
            self.say(
                _("step {step}/{total}  loss {loss:.3f}  {tokens_per_second:,.0f} tokens/s").format(
                    step=step, total=total, loss=loss, tokens_per_second=tokens_per_second
                )
            )

    def evaluation(self, result: StepEvaluation, text: str = "") -> None:
        """Show an evaluation on the held-out text, or on the validation text."""
        self._progress.update(self._task, perplexity=f"{result.perplexity:,.2f}")
        self.say(
            _(
                "step {step}  {text} loss {loss:.4f}  perplexity {perplexity:,.2f}  bits/char {bits_per_char:.3f}"
            ).format(
                step=result.step,
                text=text or _("held-out"),
                loss=result.loss,
                perplexity=result.perplexity,
                bits_per_char=result.bits_per_char,
            )
        )

    def sample(self, sample: Sample) -> None:
        """Show a text that the model generated."""
        line = Text(_("step {step}").format(step=sample.step) + "  ")
        line.append(sample.prompt, style="bold")
        if sample.text.strip():
            line.append(sample.text.rstrip().replace("\n", "⏎"), style="cyan")
        else:
            line.append(_(" (the model wrote nothing: it ended the text at once)"), style="yellow")
        self.console.print(line, soft_wrap=not self.console.is_jupyter)
