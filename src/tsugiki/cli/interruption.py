"""The message of a command that a signal ends: what is kept, and the command that continues the work."""

import shlex
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tsugiki.errors import Interrupted
from tsugiki.language import _


@contextmanager
def continued_by(words: Sequence[str]) -> Iterator[None]:
    """Add the command that continues the work to the message if a signal ends the block.

    Args:
        words: the command, after `tsugiki`.

    Raises:
        Interrupted: a signal has arrived.
    """
    try:
        yield
    except (Interrupted, KeyboardInterrupt) as stop:
        state = stop.state if isinstance(stop, Interrupted) else _("stopped at once")
        number = stop.number if isinstance(stop, Interrupted) else signal.SIGINT
        command = shlex.join(["tsugiki", *words])
        raise Interrupted(number, _("{state}; to continue: {command}").format(state=state, command=command)) from None
