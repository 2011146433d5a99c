"""Messages for errors in the use of a command, with similar names and the command that lists all names."""

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import PurePath
from typing import Any
from unicodedata import normalize

from typer.exceptions import TyperException

from tsugiki.cli.flags import is_hidden
from tsugiki.io.file_names import DATA_SUFFIXES
from tsugiki.io.validation import OTHER_NAMES
from tsugiki.language import _, marked
from tsugiki.training.settings.files import SEVERAL_TEXTS

_MOST = 3  # suggestions
_MESSAGES = [
    (r"Missing (option|argument) (?P<name>.+)", marked("{name} is missing")),
    (r"No such command (?P<name>'.*')", marked("no such command {name}")),
    (
        r"No such command (?P<name>'.*')\. Did you mean (?P<near>.*)\?",
        marked("no such command {name}; did you mean {near}?"),
    ),
    (r"Got unexpected extra argument\(s\) \((?P<extra>.*)\)", marked("unexpected argument: {extra}")),
    (r"Option (?P<name>'.*') requires an argument", marked("{name} requires a value")),
    (
        r"Invalid value for (?P<name>'.*'): (Value error, )?(?P<value>'.*') is not one of (?P<known>.*)",
        marked("{name} is {value}; use one of {known}"),
    ),
    (r"Invalid value for (?P<name>'.*'): Input should be a valid integer.*", marked("{name} must be a whole number")),
    (r"Invalid value for (?P<name>'.*'): Input should be a valid number.*", marked("{name} must be a number")),
    (
        r"Invalid value for (?P<name>'.*'): Input should be greater than or equal to (?P<least>.*)",
        marked("{name} must be {least} or more"),
    ),
    (
        r"Invalid value for (?P<name>'.*'): Input should be less than or equal to (?P<most>.*)",
        marked("{name} must be {most} or less"),
    ),
]
"""Messages of typer, and the messages that replace them."""
_DASHES = re.compile("[―—–‐ー]")
_QUOTES = "「」『』“”‘’"


def describe_usage_error(error: TyperException) -> str:
    """Return the message of an error, with the nearest flags and the command that lists all of them."""
    context: Any = getattr(error, "ctx", None)
    all_ = "-all" if any(map(is_hidden, getattr(getattr(context, "command", None), "params", ()))) else ""
    help_ = f"{context.command_path if context is not None else 'tsugiki'} --help{all_}"
    if type(error).__name__ == "NoSuchOption" and context is not None:
        wrong = getattr(error, "option_name", "")
        parameters = context.command.get_params(context)
        known = [flag for parameter in parameters for flag in (*parameter.opts, *parameter.secondary_opts)]
        problem = _("no such option: {option}", option=wrong) + did_you_mean(near_flags(wrong, known))
    else:
        problem = _problem(error)
    problem = problem.rstrip("。")  # the brackets belong to the sentence
    if hasattr(getattr(context, "command", None), "commands"):
        return _("{problem} ({help} lists the commands)", problem=problem, help=help_)
    return _("{problem} ({help} lists the options)", problem=problem, help=help_)


def with_keyboard_hint(problem: str, words: Iterable[str]) -> str:
    """Return a problem, and what to type instead of the first word with characters of a Japanese keyboard, if any.

    Marks of quotation are such characters only in a word that the problem names: elsewhere they may be meant.
    """
    for word in words:
        typed = normalize("NFKC", _DASHES.sub("-", word))
        typed = typed if typed.isascii() else word
        typed = typed.strip(_QUOTES) if word in problem else typed
        if typed != word:
            return _(
                "{problem}; {word} has characters of a Japanese keyboard: type {typed}",
                problem=problem.rstrip("。"),
                word=word,
                typed=typed,
            )
    return problem


def _problem(error: TyperException) -> str:
    """Return typer's message, in the user's language if it is a common one."""
    message = error.format_message().rstrip(".")
    for pattern, translation in _MESSAGES:
        if match := re.fullmatch(pattern, message):
            problem = _(translation, **match.groupdict())
            extra = match.groupdict().get("extra", "").split()
            if extra and PurePath(extra[0]).suffix.lower() in DATA_SUFFIXES:  # the shell has replaced a pattern
                problem = _("{problem}. {advice}", problem=problem, advice=_(SEVERAL_TEXTS))
            return problem
    return message[:1].lower() + message[1:]


def near_flags(wrong: str, known: Iterable[str]) -> list[str]:
    """Return the flags that the user may have meant, the most likely first.

    The user may have typed another program's name for the flag, its initials (--lr), one of its words (--alpha), or a
    similar name.
    """
    flags = [flag for flag in known if flag.startswith("--")]
    name = wrong.lstrip("-").replace("_", "-")
    by_words = [flag for flag in flags if name in flag[2:].split("-")]
    by_initials = [
        flag for flag in flags if len(name) > 1 and name == "".join(word[:1] for word in flag[2:].split("-"))
    ]
    other = OTHER_NAMES.get(name.replace("-", "_"))
    close = get_close_matches(f"--{name}", flags, n=_MOST)
    by_table = [f"--{other.replace('_', '-')}"] if other is not None else []
    found = by_table or by_initials or by_words or close
    return [flag for flag in dict.fromkeys(found) if flag in flags][:_MOST]


def did_you_mean(names: Sequence[str]) -> str:
    """Return a suggestion to append to an error; empty if there is nothing to suggest."""
    return _("; did you mean {names}?", names=_(" or ").join(names)) if names else ""
