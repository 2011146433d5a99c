"""Errors in the use of a command, with the nearest names and the help that lists them."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any

from typer.exceptions import TyperException

from tsugiki.language import _

_OTHER_NAMES = {
    "--rank": "--r",
    "--output": "--out",
    "--output-dir": "--out",
    "--dataset": "--data",
    "--base": "--model",
    "--iters": "--max-steps",
    "--adapter-path": "--adapter",
    "--max-tokens": "--max-new-tokens",
    "--val": "--validation",
}
"""Flags of other programs, and of earlier versions."""
_MOST = 3  # suggestions


def describe_usage_error(error: TyperException) -> str:
    """Return the message of an error, with the nearest flags and the command that lists all of them."""
    context: Any = getattr(error, "ctx", None)
    help_ = f"{context.command_path if context is not None else 'tsugiki'} --help"
    if type(error).__name__ == "NoSuchOption" and context is not None:
        wrong = getattr(error, "option_name", "")
        known = [flag for one in context.command.get_params(context) for flag in (*one.opts, *one.secondary_opts)]
        problem = _("no such option: {option}").format(option=wrong) + did_you_mean(near_flags(wrong, known))
    else:
        message = error.format_message().rstrip(".")
        problem = message[:1].lower() + message[1:]
    if hasattr(getattr(context, "command", None), "commands"):
        return _("{problem} ({help} lists the commands)").format(problem=problem, help=help_)
    return _("{problem} ({help} lists the options)").format(problem=problem, help=help_)


def near_flags(wrong: str, known: Iterable[str]) -> list[str]:
    """Return the flags that the user may have meant, the likeliest first.

    A flag is meant by another program's name for it, by its initials (--lr), by one of its words (--alpha), or by a
    name that is nearly the same.
    """
    flags = [flag for flag in known if flag.startswith("--")]
    name = wrong.lstrip("-").replace("_", "-")
    by_words = [flag for flag in flags if name in flag[2:].split("-")]
    by_initials = [
        flag for flag in flags if len(name) > 1 and name == "".join(word[:1] for word in flag[2:].split("-"))
    ]
    other = [_OTHER_NAMES[f"--{name}"]] if f"--{name}" in _OTHER_NAMES else []
    close = get_close_matches(f"--{name}", flags, n=_MOST)
    found = other or by_initials or by_words or close
    return [flag for flag in dict.fromkeys(found) if flag in flags][:_MOST]


def did_you_mean(names: Sequence[str]) -> str:
    """Return a suggestion to append to an error; empty if there is nothing to suggest."""
    return _("; did you mean {names}?").format(names=_(" or ").join(names)) if names else ""
