"""The one family of exceptions that Tsugiki raises on purpose."""

from collections.abc import Sequence

_LISTED = 5


class TsugikiError(Exception):
    """Something a person can put right: the message says what was wrong, where, and what to do.

    The command line prints the message as one line and exits with status 2.
    """


def summarise_list(places: Sequence[str]) -> str:
    """The first few of these, for a message, and how many more there are."""
    more = f" and {len(places) - _LISTED:,} more" if len(places) > _LISTED else ""
    return ", ".join(places[:_LISTED]) + more


def error_text(error: object, limit: int = 300) -> str:
    """Return an error's message as one line of at most `limit` characters."""
    return " ".join(str(error).split())[:limit]
