"""Progress on standard error: a bar in a terminal, nothing elsewhere. All commands use this display."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

T = TypeVar("T")


class ProgressDisplay:
    """Shows how far work has come, one stage at a time."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)

    @property
    def is_quiet(self) -> bool:
        """Whether bars are left out: standard error is not a terminal."""
        return not self.console.is_terminal

    @contextmanager
    def stage(self, label: str, total: int | None) -> Iterator[Callable[[int], None]]:
        """Show a bar for one stage of the work.

        Args:
            label: what is done.
            total: how many units there are; None if unknown.

        Yields:
            A function to call with the number of units done since the last call.
        """
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console, transient=True, disable=self.is_quiet) as progress:
            task = progress.add_task(label, total=total)
            yield lambda done: progress.advance(task, done)

    def track(self, items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
        """Iterate over `items` and show a bar; `total` is needed if `items` has no length."""
        with self.stage(label, total if total is not None else len(items)) as advance:  # type: ignore[arg-type]
            for item in items:
                yield item
                advance(1)

    def say(self, line: str) -> None:
        """Print one line, above a bar if one is shown."""
        self.console.print(Text(line), soft_wrap=True)
