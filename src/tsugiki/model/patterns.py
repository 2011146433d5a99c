r"""Regular expressions from settings, matched in a bounded time.

Adapter files contain regular expressions, and may come from anyone. `re` backtracks: it tries one way to match after
another, and a short expression can have more ways than could be tried in years. `([a-z]+)+!` has 2ⁿ ways for a name of
n letters. Therefore an upper bound on the ways is computed before anything is matched:

    .*\.mlp\..*_proj        at most 129² ways for a name of 128 characters: `re` matches it
    .*a.*b.*c.*d            129⁴ ways: an automaton follows all of them at once, character by character
    ^(?!.*(a.*)+b).*        an automaton cannot look ahead: an error

The automaton (see `automaton`) takes no more steps than the length of the expression times the length of the name. For
ordinary expressions `re` is a hundred times faster.
"""

import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any, Generic, TypeAlias, TypeVar

from tsugiki.errors import TsugikiError, error_text
from tsugiki.language import _

try:
    from tsugiki.model import automaton
except ImportError:  # the parser of `re` is not public; Python 3.11 to 3.13 have it
    automaton = None  # type: ignore[assignment]

T = TypeVar("T")

_NAME_LENGTH = 128
"""The length of a name for which ways are counted. The names in real models are shorter."""
_MAX_NAME_LENGTH = 256
_MAX_LENGTH = 10_000  # of an expression
_MAX_WAYS = 100_000
"""The limit for an expression, or for all expressions of a table together: `re` tries so many ways in about 1 ms."""
_ENTRY_COST = 100
"""The fixed cost of matching one entry of a table, as the number of ways that take the same time."""
_MAX_STEPS = 20_000
"""States that the automaton may visit for a name, in about 10 ms."""

Match: TypeAlias = Callable[[str], bool]
"""Returns whether a name matches."""


@lru_cache(maxsize=1024)
def compile_pattern(text: str) -> Match:
    """Return a function that returns whether the whole of a name matches a regular expression.

    Raises:
        TsugikiError: `text` is not a regular expression, or cannot be matched in a bounded time. The function raises it
            for a name that is too long or takes too many steps.
    """
    tree, ways = _parse(text)
    if ways <= _MAX_WAYS:
        return _with_limit(_compile(text).fullmatch)
    reason: object = _("this version of Python does not tell its parts")
    if automaton is not None:
        try:
            return _with_limit(partial(_follow, automaton.Automaton(tree), text))
        except (automaton.UnsupportedError, RecursionError) as error:
            reason = error
    raise TsugikiError(
        _(
            "the regular expression {pattern} has too many ways to match, and {reason}; use a simpler one, or a "
            "list of names"
        ).format(pattern=_shown(text), reason=reason)
    )


class PatternTable(Generic[T]):
    """Values by regular expression. As in PEFT, the first that matches a name, or its end after a dot, is used.

    A key that `name_pattern` returns is found by a dictionary look-up, so a table can have any number of such keys.

    Args:
        setting: the name of the setting, for messages.
        patterns: regular expression -> value.

    Raises:
        TsugikiError: a key is not a regular expression, or the table cannot be searched in a bounded time.
    """

    def __init__(self, setting: str, patterns: Mapping[str, T]) -> None:
        self._names: dict[str, tuple[int, T]] = {}
        self._patterns: list[tuple[int, Match, T]] = []
        cost = 0
        for order, (text, value) in enumerate(patterns.items()):
            name = _name_of_pattern(text)
            if name is not None:
                self._names.setdefault(name, (order, value))
                continue
            try:
                cost += _ENTRY_COST + _parse(text)[1]
                matches = _with_limit(_compile(rf"(?:.*\.)?(?:{text})").fullmatch)
            except (TsugikiError, re.error) as error:  # such as a flag for the whole expression
                raise TsugikiError(f"{setting}[{_shown(text)}]: {error}") from error
            if cost > _MAX_WAYS:
                raise TsugikiError(
                    _(
                        "{setting} has too many ways to match a name: it has {count:,} regular expressions, the "
                        "last possible one is {pattern}; use simpler ones, or whole names (^model\\.layers\\.0)"
                    ).format(setting=setting, count=len(patterns), pattern=_shown(text))
                )
            self._patterns.append((order, matches, value))

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


def _name_of_pattern(text: str) -> str | None:
    """Return the name for which `name_pattern` returns `text`, or None if there is none."""
    name = re.sub(r"\\(.)", r"\1", text[1:])
    return name if name_pattern(name) == text else None


def _with_limit(matches: Callable[[str], object]) -> Match:
    def match(name: str) -> bool:
        if len(name) > _MAX_NAME_LENGTH:
            raise TsugikiError(
                _("the name {name} has more than {longest} characters").format(
                    name=_shown(name), longest=_MAX_NAME_LENGTH
                )
            )
        return bool(matches(name))

    return match


def _parse(text: str) -> tuple[Any, int]:
    """Return the syntax tree of an expression, and an upper bound on its ways to match.

    Raises:
        TsugikiError: it is not a regular expression, or is too long.
    """
    if len(text) > _MAX_LENGTH:
        raise TsugikiError(
            _("the regular expression {pattern} has {count:,} characters, above {longest:,}").format(
                pattern=_shown(text), count=len(text), longest=_MAX_LENGTH
            )
        )
    try:
        _compile(text)
        if automaton is None:
            return None, _ways_by_signs(text)
        with _no_future_warnings():
            tree = automaton.parse(text)
        return tree, automaton.ways(tree, _NAME_LENGTH, _MAX_WAYS)
    except (re.error, RecursionError, OverflowError) as error:
        raise TsugikiError(
            _("{pattern} is not a regular expression: {error}").format(pattern=_shown(text), error=error)
        ) from error


def _compile(text: str) -> re.Pattern[str]:
    with _no_future_warnings():
        return re.compile(text)


@contextmanager
def _no_future_warnings() -> Iterator[None]:
    """Do not warn that an expression such as `[[a]` may mean something else in a later version of Python."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def _ways_by_signs(text: str) -> int:
    """Return an upper bound on the ways to match an expression without parsing it, which refuses more expressions.

    Each repetition operator is counted as if it repeated a single element; a repeated group is above the limit.
    """
    if re.search(r"\)[*+{]", text):
        return _MAX_WAYS + 1
    groups = text.count("(") + 1
    alternatives = (text.count("|") / groups + 1) ** groups
    return int(
        min(alternatives * (_NAME_LENGTH + 1) ** len(re.findall(r"[*+{]", text)) * 2 ** text.count("?"), _MAX_WAYS + 1)
    )


def _follow(states: "automaton.Automaton", text: str, name: str) -> bool:
    """Return whether the whole name matches; `text` is the expression, for the message."""
    matches = states.fullmatch(name, _MAX_STEPS)
    if matches is None:
        raise TsugikiError(
            _(
                "the regular expression {pattern} takes too many steps for {name}; use a simpler one, or a list of "
                "names"
            ).format(pattern=_shown(text), name=_shown(name))
        )
    return matches


def _shown(text: str) -> str:
    return error_text(repr(text), 80)
