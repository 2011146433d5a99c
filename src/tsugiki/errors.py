"""The exceptions of Tsugiki, and helpers for their messages."""

import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from tsugiki.language import _

_MAX_ITEMS = 5
_LONGEST_ITEM = 150  # characters
_LONGEST = 2000  # characters of a message
_PACKAGE = str(Path(__file__).parent)


class TsugikiError(Exception):
    """An error that the user can correct. Its message says what was wrong, where, and what to do.

    The command line prints the message as one line and exits with status 2; `--debug` prints the traceback as well. The
    middle of a very long message, such as one with the name of a tensor in a damaged file, is left out.
    """

    def __init__(self, message: str, /, **values: object) -> None:
        """Create the error with a message that is translated here and gets its values, as by `language._`."""
        super().__init__(message and _(message, **values))

    def __str__(self) -> str:
        text = super().__str__()
        return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} … {text[3 - _LONGEST // 2 :]}"


class TsugikiWarning(UserWarning):
    """A warning of this package. The command line prints it as a note, and hides the warnings of libraries."""


class OtherProcessError(Exception):
    """Another process of the run has stopped. It prints the reason, so this process ends without a message."""


class Interrupted(BaseException):
    """A signal has ended the command. Not an `Exception`, so that it is not taken for an error."""

    def __init__(self, number: int, state: str = "") -> None:
        """Create the exception.

        Args:
            number: the signal's number.
            state: the end of the message, which says what is kept.
        """
        self.number, self.state = number, state
        message = _("stopped by {signal}: {state}") if state else _("stopped by {signal}")
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        super().__init__(message.format(signal=name, state=state))


def is_ordinary(error: BaseException) -> bool:
    """Return whether an exception is an error, as opposed to an interruption or an exit.

    A panic of a library in Rust, such as tokenizers, is an error although its class does not derive from `Exception`.
    """
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def summarise_list(items: Sequence[str]) -> str:
    """Return the first few items, separated by commas, and how many more there are. Long items are cut off."""
    more = _(" and {count:,} more", count=len(items) - _MAX_ITEMS) if len(items) > _MAX_ITEMS else ""
    return ", ".join(error_text(item, _LONGEST_ITEM) for item in items[:_MAX_ITEMS]) + more


def unreadable(path: object, error: Exception) -> TsugikiError:
    """Return the error for a file that cannot be read."""
    return system_error(_("{path} cannot be read: {reason}"), path, error)


def system_error(message: str, path: object, error: Exception) -> TsugikiError:
    """Return the error for a failed file operation; `message` has the fields `path` and `reason`."""
    reason = getattr(error, "strerror", None) or error_text(error)
    return TsugikiError(message.format(path=path, reason=reason))


def error_text(error: object, limit: int = 300) -> str:
    """Return an error's message as one line of at most `limit` characters."""
    return " ".join(str(error).split())[:limit]


def warn_caller(message: str) -> None:
    """Warn with the place outside this package that has called it, such as the line with `graft`."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, TsugikiWarning, stacklevel=level)
