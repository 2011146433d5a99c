"""Progress of a training run: a live line in a terminal, a few plain lines elsewhere. All on standard error."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from tsugiki.io.progress import Detail, ProgressDisplay
from tsugiki.language import _
from tsugiki.training.record.result import StepEvaluation, StepPairs

_PLAIN_LINES = 10  # of a whole run, where standard error is not a terminal
_NARROWEST_BAR, _WIDEST_BAR = 8, 24


class TimeLeft(ProgressColumn):
    """The time until the run is finished, from the mean time of a step, evaluations and checkpoints included."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        """Return the time as hours, minutes and seconds."""
        done = task.completed - task.fields["first"]
        if done <= 0 or task.total is None or task.elapsed is None:
            return Text("-:--:--", style="progress.remaining")
        seconds = task.elapsed / done * (task.total - task.completed) + task.fields["after"]
        return Text(str(timedelta(seconds=round(seconds))), style="progress.remaining")


def _columns(width: int) -> list[ProgressColumn]:
    """Return the columns of the live line; in a narrow terminal the bar is left out."""
    steps, loss = _("step"), _("loss")
    columns: list[ProgressColumn] = [
        TextColumn(f"[bold]{steps}"),
        MofNCompleteColumn(),
        TextColumn(f"{loss} {{task.fields[loss]}}"),
        TextColumn("{task.fields[activity]}", markup=False),
        TimeLeft(),
    ]
    room = width - cell_len(
        f"{steps} 9999/9999 {loss} 12.345 {_('{speed:,.0f} tokens/s').format(speed=12345)} 00:00:00"
    )
    if room > _NARROWEST_BAR:
        columns.insert(2, BarColumn(bar_width=min(room - 1, _WIDEST_BAR)))
    return columns


class RunProgress(ProgressDisplay):
    """The display of one run; a context manager."""

    def __init__(self, console: Console | None = None, shown: bool = True) -> None:
        """Create the display; with `shown` False, nothing is printed."""
        self.started = time.monotonic()
        super().__init__(console or Console(stderr=True, highlight=False, quiet=not shown))
        self._progress = Progress(*_columns(self.console.width), console=self.console, disable=self.is_quiet)
        self._task = self._progress.add_task(
            "train", total=None, loss="–", activity="", first=0, after=0.0, start=False, visible=False
        )

    def __enter__(self) -> "RunProgress":
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    @contextmanager
    def stage(self, label: str, total: int | None) -> Iterator[Callable[[int], None]]:
        """As in `ProgressDisplay`, but while the live line of steps is shown, the label is a part of it."""
        if self._progress.live.is_started:
            former = self._progress.tasks[0].fields["activity"]
            self._progress.update(self._task, activity=label)
            yield lambda done: None
            self._progress.update(self._task, activity=former)
        else:
            with super().stage(label, total) as advance:
                yield advance

    def begin(self, total: int, done: int, after: float = 0.0) -> None:
        """Show the live line of a run of `total` steps, `done` of which a resumed run has already done.

        `after` is the time in seconds that evaluations and samples after the last step will take.
        """
        self._progress.update(self._task, total=total, completed=done, visible=True, first=done, after=after)
        self._progress.start_task(self._task)
        self._progress.start()

    def step(self, step: int, total: int, loss: float, tokens_per_second: float) -> None:
        """Show that an optimiser step is done. The speed counts all tokens, also those that are not in the loss."""
        speed = _("{speed:,.0f} tokens/s", speed=tokens_per_second)
        self._progress.update(self._task, total=total, completed=step, loss=f"{loss:.3f}", activity=speed)
        if self.is_quiet and step % max(1, total // _PLAIN_LINES) == 0:
            message = _(
                "step {step}/{total}  loss {loss:.3f}  {tokens_per_second:,.0f} tokens/s",
                step=step,
                total=total,
                loss=loss,
                tokens_per_second=tokens_per_second,
            )
            self.print(message)

    def evaluation(self, result: StepEvaluation, text: str = "") -> None:
        """Show an evaluation on the held-out text, or on the validation text."""
        message = _(
            "step {step}  {text} loss {loss:.4f}  perplexity {perplexity:,.2f}  bits/char {bits_per_char:.3f}",
            step=result.step,
            text=text or _("held-out"),
            loss=result.loss,
            perplexity=result.perplexity,
            bits_per_char=result.bits_per_char,
        )
        self.print(Detail(message))

    def pairs(self, result: StepPairs, text: str = "") -> None:
        """Show how often the held-out or the validation pairs are right."""
        low, high = result.accuracy_interval
        message = _(
            "step {step}  {text} pairs: accuracy {accuracy:.1%} [{low:.1%}, {high:.1%}]  margin {margin:.3f}  "
            "log-probability of chosen {chosen:.2f}, of rejected {rejected:.2f}"
        )
        values = dict(result) | {"text": text or _("held-out"), "low": low, "high": high}
        self.print(Detail(message.format(**values)))
