"""The progress display of all commands (a bar on standard error, or in a notebook); other libraries show nothing."""

import logging
import os
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from tsugiki.errors import TsugikiWarning
from tsugiki.io.system import is_verbose

T = TypeVar("T")
_LOUD = "bitsandbytes"  # PEFT imports it, and it warns of missing kernels


class Detail(str):
    """A line about how the work is done, which is printed with `--verbose` only."""


class ProgressDisplay:
    """Shows the progress of work, one stage at a time."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)

    @property
    def is_quiet(self) -> bool:
        """Whether no bars are shown, because standard error is neither a terminal nor a notebook with widgets.

        A command that a notebook starts (`!tsugiki train`) has a terminal, but the notebook shows every copy of a bar.
        """
        if self.console.is_jupyter:
            return find_spec("ipywidgets") is None
        return not self.console.is_terminal or "JPY_PARENT_PID" in os.environ

    @contextmanager
    def stage(self, label: str, total: int | None) -> Iterator[Callable[[int], None]]:
        """Show a bar for one stage of the work; `total` is its number of units, None if it is unknown.

        The block gets a function to call with the number of units completed since the last call.
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

    def track(self, items: Collection[T], label: str) -> Iterator[T]:
        """Iterate over `items` and show a bar."""
        with self.stage(label, len(items)) as advance:
            for item in items:
                yield item
                advance(1)

    def announce(self, line: str) -> None:
        """Print a line about work that begins now and takes seconds; nothing if no bars are shown."""
        if not self.is_quiet:
            self.print(line)

    def print(self, line: str) -> None:
        """Print one line, above a bar if one is shown."""
        if is_verbose() or not isinstance(line, Detail):
            self.console.print(Text(line), soft_wrap=not self.console.is_jupyter)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Within the block only errors of transformers and bitsandbytes are shown, and warnings that Tsugiki gives."""
    from transformers.utils import logging as transformers_logging

    other = logging.getLogger(_LOUD)
    before, level = transformers_logging.get_verbosity(), other.level
    transformers_logging.set_verbosity_error()
    other.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("default", TsugikiWarning)
            yield
    finally:
        transformers_logging.set_verbosity(before)
        other.setLevel(level)


@contextmanager
def hidden_progress_bars() -> Iterator[None]:
    """Hide the progress bars of transformers and huggingface_hub inside the block."""
    from transformers.utils import logging as transformers_logging

    visible = transformers_logging.is_progress_bar_enabled()
    if visible:
        transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if visible:
            transformers_logging.enable_progress_bar()
