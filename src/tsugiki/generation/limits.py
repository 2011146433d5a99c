"""The limits of the engine, and the errors of requests that exceed them."""

from dataclasses import dataclass

from tsugiki.errors import TsugikiError
from tsugiki.language import _


class QueueFull(TsugikiError):
    """Too many requests wait; the client may try again."""


class WaitedTooLong(TsugikiError):
    """A request waited too long for its turn; the client may try again."""


class EngineStopped(TsugikiError):
    """The thread that owns the model is stopping or has stopped."""


@dataclass(frozen=True)
class Limits:
    """Limits on the requests and the memory of the engine."""

    rows: int = 16
    """Largest number of rows in a batch."""
    cache_bytes: int = 2_000_000_000
    """Largest size of the key-value cache: rows times the longest row, padding included."""
    waiting: int = 64
    """Largest number of waiting requests."""
    prefix_bytes: int = 500_000_000
    """Largest size of the prefix cache, whose keys and values are used for prompts with the same beginning; 0: none."""
    seconds: float = 60.0
    """How long a request may wait."""


DEFAULT_LIMITS = Limits()


def waited_too_long(seconds: float) -> WaitedTooLong:
    """Return the error for a request that has waited longer than allowed."""
    return WaitedTooLong(_("the request waited for more than {seconds:g} s").format(seconds=seconds))


def stopped() -> EngineStopped:
    """Return the error for a request that cannot be finished because the server is stopping."""
    return EngineStopped(_("the server is stopping"))
