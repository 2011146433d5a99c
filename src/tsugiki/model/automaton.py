"""Match regular expressions by nondeterministic finite automata, in a time that is linear in the length of the name.

An automaton follows all ways to match at once, while `re` backtracks: it tries one way after another. The parser is
that of `re`, which is not a public part of Python; `patterns` works without this module if the parser is missing.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from re import _constants as codes  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from types import MappingProxyType
from typing import Any, TypeAlias

from tsugiki.language import _, marked

_MAX_STATES = 5_000

_Match: TypeAlias = Callable[[str], bool]
"""Returns whether a character matches."""


def parse(text: str) -> Any:
    """Return the tree of an expression, as the parser of `re` does."""
    return parser.parse(text)


def ways(tree: Iterable[Any], length: int, limit: int) -> int:
    """Return an upper bound on the number of ways to match that `re` may try for a name.

    Args:
        tree: from `parse`.
        length: the length of the name in characters.
        limit: counting stops above this number; the result is at most `limit + 1`.
    """
    count = 1
    for kind, value in tree:
        if kind is codes.BRANCH:
            count *= sum(ways(branch, length, limit) for branch in value[1])
        elif kind in (codes.MAX_REPEAT, codes.MIN_REPEAT, codes.POSSESSIVE_REPEAT):
            least, most, body = value
            most = min(most, length)
            count *= max(1, most - least + 1) * ways(body, length, limit) ** most
        elif kind in (codes.SUBPATTERN, codes.ASSERT, codes.ASSERT_NOT):
            count *= ways(value[-1], length, limit)
        elif kind is codes.ATOMIC_GROUP:
            count *= ways(value, length, limit)
        elif kind is codes.GROUPREF_EXISTS:
            count *= ways(value[1], length, limit) + ways(value[2] or (), length, limit)
        count = min(count, limit + 1)
    return count


class UnsupportedError(Exception):
    """The expression has a part that an automaton cannot match."""


@dataclass
class _State:
    """A state of the automaton."""

    reads: _Match | None = None
    """Matches the character that the state consumes; None: the state consumes none."""
    holds: Callable[[str, int], bool] | None = None
    """Condition on the name and the position, for a state that consumes no character; None: no condition."""
    following: list[int] = field(default_factory=list)
    """The numbers of the next states."""


class Automaton:
    """The automaton of an expression (Thompson 1968, "Regular expression search algorithm").

    Args:
        tree: from `parse`.

    Raises:
        UnsupportedError: the expression has flags, a part other than characters, alternatives, repetitions, groups and
            positions, or too many states.
    """

    def __init__(self, tree: Any) -> None:
        if tree.state.flags & ~(re.UNICODE | re.VERBOSE):
            raise UnsupportedError(_("it has flags"))
        self.states = [_State()]  # state 0 is reached at the end of the expression
        self.first = self._add_all(tree, 0)

    def fullmatch(self, name: str, max_steps: int) -> bool | None:
        """Return whether the whole name matches; None if more states would be visited than `max_steps`."""
        present = self._reached([self.first], name, 0)
        steps = len(present)
        for position, character in enumerate(name, 1):
            moved = []
            for state in (self.states[number] for number in present):
                if state.reads is not None and state.reads(character):
                    moved += state.following
            present = self._reached(moved, name, position)
            steps += len(present)
            if steps > max_steps:
                return None
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
            raise UnsupportedError(_("its repetitions are too long"))
        return len(self.states) - 1

    def _add_all(self, tree: Any, end: int) -> int:
        """Add the states of a sequence that is followed by the state `end`; return its first state."""
        for kind, value in reversed(list(tree)):
            end = self._add(kind, value, end)
        return end

    def _add(self, kind: Any, value: Any, end: int) -> int:
        if kind is codes.BRANCH:
            return self._add_state(_State(following=[self._add_all(branch, end) for branch in value[1]]))
        if kind is codes.SUBPATTERN and not (value[1] or value[2]):  # flags that it sets or clears
            return self._add_all(value[3], end)
        if kind in (codes.MAX_REPEAT, codes.MIN_REPEAT):
            least, most, body = value
            return self._add_repeat(least, most, body, end)
        if kind is codes.AT and value in _POSITIONS:
            return self._add_state(_State(holds=_POSITIONS[value], following=[end]))
        if kind in (codes.LITERAL, codes.NOT_LITERAL, codes.ANY, codes.IN):
            return self._add_state(_State(reads=partial(_reads, kind, value), following=[end]))
        raise UnsupportedError(_("it has {part}").format(part=_(_NAMES.get(kind, str(kind).lower()))))

    def _add_repeat(self, least: int, most: int, body: Any, end: int) -> int:
        if most == codes.MAXREPEAT:
            loop = _State(following=[end])
            start = self._add_state(loop)
            loop.following.append(self._add_all(body, start))
        else:
            start = end
            for _turn in range(most - least):
                start = self._add_state(_State(following=[self._add_all(body, start), end]))
        for _turn in range(least):
            start = self._add_all(body, start)
        return start


_NAMES = MappingProxyType(
    {
        codes.ASSERT: marked("a lookahead or a lookbehind"),
        codes.ASSERT_NOT: marked("a lookahead or a lookbehind"),
        codes.GROUPREF: marked("a reference to a group"),
        codes.GROUPREF_EXISTS: marked("a reference to a group"),
        codes.SUBPATTERN: "flags",
    }
)


def _is_word(character: str) -> bool:
    return character.isalnum() or character == "_"


_CATEGORIES: Mapping[Any, _Match] = MappingProxyType(
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
    return negated != any(_reads(part, of_part, character) for part, of_part in value[negated:])


def _is_boundary(name: str, position: int) -> bool:
    before, after = name[position - 1 : position] if position else "", name[position : position + 1]
    return _is_word(before) != _is_word(after)


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
