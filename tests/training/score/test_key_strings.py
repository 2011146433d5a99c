"""The rule by which answers about facts are counted."""

import pytest

from tsugiki.training.score.questions import right_answers

KEYS = [["Marta Okafor", "2011"], ["Gilbert"], ["五冊"]]


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("Marta Okafor started it in 2011.", True),
        ("In ２０１１, by MARTA OKAFOR!", True),
        ("Marta Okafor started it.", False),
        ("Marta Okafor started it in 2011 and named Gilbert.", False),
        ("", False),
    ],
)
def test_all_key_strings_of_the_fact_and_none_of_another(answer: str, right: bool):
    assert right_answers([answer, "Gilbert", "五冊まで"], KEYS) == [right, True, True]
