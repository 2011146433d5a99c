"""Regular expressions as automata give the answers of `re`."""

import itertools
import random
import re

from tsugiki.model import Automaton, parse


def random_expression(draw: random.Random, depth: int) -> str:
    kind = draw.random()
    if depth == 0 or kind < 0.3:
        return draw.choice(
            ["a", "b", ".", "[ab]", "[^a]", "[a-c_]", r"[\d.]", r"\.", r"\w", r"\d", r"\W", "^", "$", r"\b"]
        )
    one, two = (random_expression(draw, depth - 1) for _ in range(2))
    if kind < 0.5:
        return one + two
    if kind < 0.7:
        return f"(?:{one}|{two})"
    return f"({one}){draw.choice(['*', '+', '?', '*?', '+?', '{1,2}', '{2}', '{0,3}?', '{1,}'])}{two}"


def test_the_automaton_gives_the_answers_of_re():
    draw = random.Random(0)
    names = ["".join(letters) for n in range(1, 5) for letters in itertools.product("ab.1", repeat=n)]
    matched = 0
    for _ in range(150):
        text = random_expression(draw, 4)
        automaton, expected = Automaton(parse(text)), re.compile(text)
        for name in names:
            found = automaton.fullmatch(name, 20_000)
            assert found == (expected.fullmatch(name) is not None), (text, name)
            matched += found
    assert matched > 1000


def test_too_many_steps_give_no_answer():
    automaton = Automaton(parse("(a|b)*c"))
    assert automaton.fullmatch("ab" * 20 + "c", 1000) is True
    assert automaton.fullmatch("ab" * 20, 1000) is False
    assert automaton.fullmatch("ab" * 20 + "c", 10) is None
