r"""Regular expressions from settings and files, matched within a limit of time.

Adapter files contain regular expressions, and may come from anyone. `([a-z]+)+!` has 2ⁿ ways to match a name of n
letters, and `re` tries one after another. `regex`, which transformers requires, is `re` with a limit of time. It reads
the clock rarely: with 0.05 s, the slowest expressions end after 0.4 s. An ordinary name takes a few microseconds.
"""

import math
import re
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any, Generic, TypeAlias, TypeVar

from tsugiki.errors import TsugikiError, error_text
from tsugiki.language import _

T = TypeVar("T")

Match: TypeAlias = Callable[[str], bool]
"""Returns whether a name or a text matches."""

_SECONDS = 0.05  # for a name, whose length is that of the path of a module
_SEARCH_SECONDS = 1.0  # for a text, which may be a thousand times as long
_MAX_LENGTH = 10_000  # of an expression
_MAX_REPEATS = 100_000
"""Limit on the product of all numbers in braces, because `regex` compiles `(a{90}){90}` as 8,100 letters."""


@lru_cache(maxsize=4096)
def compile_pattern(text: str) -> Match:
    """Return a function that returns whether the whole of a name matches a regular expression.

    Raises:
        TsugikiError: `text` is not a regular expression, or is too long. The function raises it for a name that takes
            too long.
    """
    return partial(_in_time, _compile(text).fullmatch, _SECONDS, text)


@lru_cache(maxsize=4096)
def compile_search(text: str) -> Match:
    """Return a function that returns whether a part of a text matches a regular expression.

    Raises:
        TsugikiError: as for `compile_pattern`.
    """
    return partial(_in_time, _compile(text).search, _SEARCH_SECONDS, text)


class PatternTable(Generic[T]):
    """Values by regular expression. As in PEFT, the first that matches a name, or its end after a dot, is used.

    A key that `name_pattern` returns is found by a dictionary look-up, so a table can have any number of such keys.

    Args:
        setting: the name of the setting, for messages.
        patterns: regular expression -> value.

    Raises:
        TsugikiError: a key is not a regular expression.
    """

    def __init__(self, setting: str, patterns: Mapping[str, T]) -> None:
        self._names: dict[str, tuple[int, T]] = {}
        self._patterns: list[tuple[int, Match, T]] = []
        for order, (text, value) in enumerate(patterns.items()):
            name = re.sub(r"\\(.)", r"\1", text[1:])
            if name_pattern(name) == text:
                self._names.setdefault(name, (order, value))
                continue
            try:
                compile_pattern(text)
                self._patterns.append((order, compile_pattern(rf"(?:.*\.)?(?:{text})"), value))
            except TsugikiError as error:
                raise TsugikiError(f"{setting}[{_shown(text)}]: {error}") from error

    def look_up(self, name: str, default: T) -> T:
        """Return the value of the first expression that matches `name` or its end after a dot."""
        exact = self._names.get(name)
        for order, matches, value in self._patterns:
            if exact is not None and exact[0] < order:
                break
            if matches(name):
                return value
        return default if exact is None else exact[1]


def name_pattern(name: str) -> str:
    """Return a key for a `PatternTable`, and for PEFT's `rank_pattern`, that matches this name and no other."""
    return f"^{re.escape(name)}"


def _compile(text: str) -> Any:
    import regex  # here, because `tsugiki --help` imports this module

    if len(text) > _MAX_LENGTH:
        raise TsugikiError(
            _("the regular expression {pattern} has {count:,} characters, above {longest:,}").format(
                pattern=_shown(text), count=len(text), longest=_MAX_LENGTH
            )
        )
    if math.prod(map(int, re.findall(r"\{(\d+)", text))) > _MAX_REPEATS:
        raise TsugikiError(
            _("the regular expression {pattern} repeats too often; use a simpler one, or a list of names").format(
                pattern=_shown(text)
            )
        )
    try:
        return regex.compile(text)
    except (regex.error, RecursionError) as error:
        raise TsugikiError(
            _("{pattern} is not a regular expression: {error}").format(pattern=_shown(text), error=error)
        ) from error


def _in_time(search: Callable[..., object], seconds: float, text: str, name: str) -> bool:
    """Return whether `search`, a method of the compiled `text`, finds a match in `name` within the limit of time."""
    try:
        return search(name, timeout=seconds) is not None
    except TimeoutError as error:
        raise TsugikiError(
            _("the regular expression {pattern} takes too long for {name}; use a simpler one").format(
                pattern=_shown(text), name=_shown(name)
            )
        ) from error


def _shown(text: str) -> str:
    return error_text(repr(text), 80)
