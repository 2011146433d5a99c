r"""Regular expressions from settings, matched in a bounded time.

Adapter files bring regular expressions of their own. `re` tries the ways through an expression one after the other, and
a short expression can have more ways than could be tried in years: `([a-z]+)+!` has 2ⁿ for a name of n letters. So the
ways are counted before anything is matched:

    .*\.mlp\..*_proj        at most 129² ways for a name of 128 characters: `re` matches it
    .*a.*b.*c.*d            129⁴ ways: an automaton follows all of them at once, character by character
    ^(?!.*(a.*)+b).*        an automaton cannot look ahead: an error

The automaton takes no more steps than the length of the expression times the length of the name. For ordinary
expressions `re` is a hundred times faster.
"""

import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial
from re import _constants as codes  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from types import MappingProxyType
from typing import Any, Generic, TypeAlias, TypeVar

from tsugiki.errors import TsugikiError, error_text

T = TypeVar("T")

_NAME_LENGTH = 128
"""The length of a name for which ways are counted. The names in real models are shorter."""
_MAX_NAME_LENGTH = 256
_MAX_LENGTH = 10_000  # of an expression
_MAX_WAYS = 100_000
"""For the expression of a setting, or all those of a table together: `re` takes about 1 ms to try them for a name."""
_ENTRY_COST = 100
"""Ways that could be tried in the time that looking at an entry of a table takes."""
_MAX_STATES = 5_000
_MAX_STEPS = 20_000
"""States that the automaton may visit for a name, in about 10 ms."""

Match: TypeAlias = Callable[[str], bool]
"""Returns whether a name matches."""


@lru_cache(maxsize=1024)
def compile_pattern(text: str) -> Match:
    """Return a function that tells whether the whole of a name matches a regular expression.

    Raises:
        TsugikiError: `text` is not a regular expression, or cannot be matched in a bounded time. The function raises it
            for a name that is too long or takes too many steps.
    """
    tree, ways = _parse(text)
    if ways <= _MAX_WAYS:
        return _with_limit(_compile(text).fullmatch)
    try:
        return _with_limit(partial(_Automaton(tree).fullmatch, text))
    except (_UnsupportedError, RecursionError) as error:
        raise TsugikiError(
            f"the regular expression {_shown(text)} has too many ways to match, and {error}; use a simpler one, or a "
            "list of names"
        ) from error


class PatternTable(Generic[T]):
    """Values by regular expression. As in PEFT, the first expression counts that matches a name or its end after a dot.

    A key that `name_pattern` returns costs no time, so a table can have any number of them.

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
                    f"{setting} has too many ways to match a name: it has {len(patterns):,} regular expressions, the "
                    rf"last possible one is {_shown(text)}; use simpler ones, or whole names (^model\.layers\.0)"
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
    """Return the name that `name_pattern` made `text` of, or None if it did not."""
    name = re.sub(r"\\(.)", r"\1", text[1:])
    return name if name_pattern(name) == text else None


def _with_limit(matches: Callable[[str], object]) -> Match:
    def match(name: str) -> bool:
        if len(name) > _MAX_NAME_LENGTH:
            raise TsugikiError(f"the name {_shown(name)} has more than {_MAX_NAME_LENGTH} characters")
        return bool(matches(name))

    return match


def _parse(text: str) -> tuple[Any, int]:
    """Return the tree of an expression, and its ways.

    Raises:
        TsugikiError: it is not a regular expression, or is too long.
    """
    if len(text) > _MAX_LENGTH:
        raise TsugikiError(f"the regular expression {_shown(text)} has {len(text):,} characters, above {_MAX_LENGTH:,}")
    try:
        _compile(text)
        with _no_future_warnings():
            tree = parser.parse(text)
        return tree, _ways(tree)
    except (re.error, RecursionError, OverflowError) as error:
        raise TsugikiError(f"{_shown(text)} is not a regular expression: {error}") from error


def _compile(text: str) -> re.Pattern[str]:
    with _no_future_warnings():
        return re.compile(text)


@contextmanager
def _no_future_warnings() -> Iterator[None]:
    """Do not warn that an expression such as `[[a]` may mean something else in a later version of Python."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def _ways(tree: Iterable[Any]) -> int:
    """Return an upper bound on the ways through an expression, or any number above `_MAX_WAYS` if there are more."""
    ways = 1
    for kind, value in tree:
        if kind is codes.BRANCH:
            ways *= sum(map(_ways, value[1]))
        elif kind in (codes.MAX_REPEAT, codes.MIN_REPEAT, codes.POSSESSIVE_REPEAT):
            least, most, body = value
            most = min(most, _NAME_LENGTH)
            ways *= max(1, most - least + 1) * _ways(body) ** most
        elif kind in (codes.SUBPATTERN, codes.ASSERT, codes.ASSERT_NOT):
            ways *= _ways(value[-1])
        elif kind is codes.ATOMIC_GROUP:
            ways *= _ways(value)
        elif kind is codes.GROUPREF_EXISTS:
            ways *= _ways(value[1]) + _ways(value[2] or ())
        ways = min(ways, _MAX_WAYS + 1)
    return ways


def _shown(text: str) -> str:
    return error_text(repr(text), 80)


class _UnsupportedError(Exception):
    """An automaton cannot do this."""


@dataclass
class _State:
    """A state of the automaton: it reads a character, requires a condition, or does nothing; then others follow."""

    reads: Match | None = None
    holds: Callable[[str, int], bool] | None = None
    following: list[int] = field(default_factory=list)


class _Automaton:
    """An expression as states that are followed all at once (Thompson 1968, "Regular expression search algorithm").

    Args:
        tree: what the parser of `re` returns.

    Raises:
        _UnsupportedError: it has something else than characters, alternatives, repetitions, groups and positions.
    """

    def __init__(self, tree: Any) -> None:
        if tree.state.flags & ~(re.UNICODE | re.VERBOSE):
            raise _UnsupportedError("it has flags")
        self.states = [_State()]  # state 0 is reached at the end of the expression
        self.first = self._add_all(tree, 0)

    def fullmatch(self, text: str, name: str) -> bool:
        """Return whether the whole name matches; `text` is the expression, for the message."""
        present = self._reached([self.first], name, 0)
        steps = len(present)
        for position, character in enumerate(name, 1):
            moved = []
            for state in (self.states[number] for number in present):
                if state.reads is not None and state.reads(character):
                    moved += state.following
            present = self._reached(moved, name, position)
            steps += len(present)
            if steps > _MAX_STEPS:
                raise TsugikiError(
                    f"the regular expression {_shown(text)} takes too many steps for {_shown(name)}; use a simpler "
                    "one, or a list of names"
                )
        return 0 in present

    def _reached(self, states: Iterable[int], name: str, position: int) -> set[int]:
        """Return these states, and those that follow from them without reading a character."""
        reached: set[int] = set()
        to_do = list(states)
        while to_do:
            number = to_do.pop()
            if number not in reached:
                reached.add(number)
                state = self.states[number]
                if state.reads is None and (state.holds is None or state.holds(name, position)):
                    to_do += state.following
        return reached

    def _add_state(self, state: _State) -> int:
        self.states.append(state)
        if len(self.states) > _MAX_STATES:
            raise _UnsupportedError("its repetitions are too long")
        return len(self.states) - 1

    def _add_all(self, tree: Any, end: int) -> int:
        """Add the states of a sequence that is followed by the state `end`; return its first state."""
        for kind, value in reversed(list(tree)):
            end = self._add(kind, value, end)
        return end

    def _add(self, kind: Any, value: Any, end: int) -> int:
        if kind is codes.BRANCH:
            return self._add_state(_State(following=[self._add_all(one, end) for one in value[1]]))
        if kind is codes.SUBPATTERN and not (value[1] or value[2]):  # flags that it sets or clears
            return self._add_all(value[3], end)
        if kind in (codes.MAX_REPEAT, codes.MIN_REPEAT):
            least, most, body = value
            return self._add_repeat(least, most, body, end)
        if kind is codes.AT and value in _POSITIONS:
            return self._add_state(_State(holds=_POSITIONS[value], following=[end]))
        if kind in (codes.LITERAL, codes.NOT_LITERAL, codes.ANY, codes.IN):
            return self._add_state(_State(reads=partial(_reads, kind, value), following=[end]))
        raise _UnsupportedError(f"it has {_NAMES.get(kind, str(kind).lower())}")

    def _add_repeat(self, least: int, most: int, body: Any, end: int) -> int:
        if most == codes.MAXREPEAT:
            loop = _State(following=[end])
            start = self._add_state(loop)
            loop.following.append(self._add_all(body, start))
        else:
            start = end
            for _ in range(most - least):
                start = self._add_state(_State(following=[self._add_all(body, start), end]))
        for _ in range(least):
            start = self._add_all(body, start)
        return start


_NAMES = MappingProxyType(
    {
        codes.ASSERT: "a lookahead or a lookbehind",
        codes.ASSERT_NOT: "a lookahead or a lookbehind",
        codes.GROUPREF: "a reference to a group",
        codes.GROUPREF_EXISTS: "a reference to a group",
        codes.SUBPATTERN: "flags",
    }
)


def _is_word(character: str) -> bool:
    return character.isalnum() or character == "_"


_CATEGORIES: Mapping[Any, Match] = MappingProxyType(
    {
        codes.CATEGORY_DIGIT: str.isdecimal,
        codes.CATEGORY_SPACE: str.isspace,
        codes.CATEGORY_WORD: _is_word,
        codes.CATEGORY_NOT_DIGIT: lambda character: not character.isdecimal(),
        codes.CATEGORY_NOT_SPACE: lambda character: not character.isspace(),
        codes.CATEGORY_NOT_WORD: lambda character: not _is_word(character),
    }
)


def _reads(kind: Any, value: Any, character: str) -> bool:
    """Return whether one element of an expression matches a character."""
    if kind is codes.ANY:
        return character != "\n"
    if kind is codes.LITERAL:
        return character == chr(value)
    if kind is codes.NOT_LITERAL:
        return character != chr(value)
    if kind is codes.RANGE:
        return chr(value[0]) <= character <= chr(value[1])
    if kind is codes.CATEGORY:
        return _CATEGORIES[value](character)
    negated = value[0][0] is codes.NEGATE  # codes.IN: a set in brackets
    return negated != any(_reads(one, of_it, character) for one, of_it in value[negated:])


def _is_boundary(name: str, position: int) -> bool:
    around = (name[position - 1 : position] if position else "", name[position : position + 1])
    before, after = (_is_word(one) for one in around)
    return before != after


_POSITIONS: Mapping[Any, Callable[[str, int], bool]] = MappingProxyType(
    {
        codes.AT_BEGINNING: lambda name, position: position == 0,
        codes.AT_BEGINNING_STRING: lambda name, position: position == 0,
        codes.AT_END: lambda name, position: name[position:] in ("", "\n"),
        codes.AT_END_STRING: lambda name, position: position == len(name),
        codes.AT_BOUNDARY: _is_boundary,
        codes.AT_NON_BOUNDARY: lambda name, position: not _is_boundary(name, position),
    }
)
