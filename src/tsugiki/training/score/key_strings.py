"""Count right answers about facts of which each has key strings, such as a name and a year.

An answer is right if all key strings of its fact are in it, and none of another fact's. Answers and key strings are
compared in Unicode's form NFKC and without differences of upper and lower case. An answer that lists everything is
wrong by this rule, and so is one that begins well and then tells another fact. Wording and length do not matter.
"""

from collections.abc import Sequence

from tsugiki.data.records import folded


def right_answers(answers: Sequence[str], keys: Sequence[Sequence[str]]) -> list[bool]:
    """Return whether each answer is right: `answers[i]` is about the fact whose key strings are `keys[i]`."""
    of_facts = [[folded(key) for key in own] for own in keys]
    return [_is_right(folded(answer), number, of_facts) for number, answer in enumerate(answers)]


def _is_right(answer: str, number: int, keys: Sequence[Sequence[str]]) -> bool:
    return all((key in answer) == (fact == number) for fact, own in enumerate(keys) for key in own)
