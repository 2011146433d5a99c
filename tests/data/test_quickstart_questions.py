"""The facts of the second quickstart: their key strings tell them apart, and the questions that count are new."""

from collections import Counter
from pathlib import Path
from unicodedata import normalize

import pytest

import tsugiki
from tests.files import rows_of
from tsugiki.language import LANGUAGES
from tsugiki.training.score.questions import right_answers

FOLDER = Path(tsugiki.__file__).parent / "assets" / "questions"


def rows(name: str) -> list[dict]:
    return rows_of(FOLDER / f"{name}.jsonl")


def pairs(name: str) -> list[tuple[str, str]]:
    """Questions and answers of all rows."""
    texts = [
        [turn["content"] for turn in row["messages"]] if "messages" in row else [row["prompt"], row["completion"]]
        for row in rows(name)
    ]
    return [pair for turns in texts for pair in zip(turns[::2], turns[1::2], strict=True)]


@pytest.mark.parametrize("language", LANGUAGES)
def test_each_of_twenty_facts_is_learned_in_five_phrasings_and_asked_in_another(language: str):
    learned, unseen = set(pairs(language)), pairs(f"{language}-unseen")
    assert len(unseen) == 20
    assert Counter(answer for _question, answer in learned) == {answer: 5 for _question, answer in unseen}
    seen, new = ({normalize("NFKC", question).casefold() for question, _answer in half} for half in (learned, unseen))
    assert (len(seen), len(new)) == (100, 20)
    assert not seen & new


@pytest.mark.parametrize("language", LANGUAGES)
def test_an_answer_has_the_key_strings_of_its_own_fact_alone(language: str):
    unseen = rows(f"{language}-unseen")
    keys = [row["keys"] for row in unseen]
    assert all(keys)
    assert right_answers([row["completion"] for row in unseen], keys) == [True] * 20
    assert not any(right_answers([row["prompt"] for row in unseen], keys))
