"""End a run between two optimiser steps when SIGINT, SIGTERM or SIGHUP arrives, so that its state is complete."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from tsugiki.errors import Interrupted

_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class StopSignals:
    """Receives signals within its `with` block. A second signal ends the process without waiting for the step.

    Args:
        raises: raise `Interrupted` for a signal; within `deferred`, at the end of that block. Several processes must
            stop after the same step, so they only look at `received`.
    """

    def __init__(self, raises: bool) -> None:
        self.received: int | None = None
        """The number of the signal that has arrived."""
        self._raises = raises
        self._deferred = False
        self._former: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():  # Python allows handlers there only
            self._former = {number: signal.signal(number, self._receive) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Delay the exception for a signal to the end of the block."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        if self.received is not None and self._raises:
            raise Interrupted(self.received)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = number
        if self._raises and not self._deferred:
            raise Interrupted(number)
