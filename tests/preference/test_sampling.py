"""Answers: what is cut off, which two make a pair, and what is stored."""

from pathlib import Path

import pytest

from tests.errors import refused
from tsugiki.data.read.answers import PromptRow
from tsugiki.io.digests import check_digest, write_digest
from tsugiki.preference.sampling import (
    Answer,
    PromptAnswers,
    answer_of,
    count_answers,
    nothing_to_learn,
    read_answers,
    write_answers,
)

ROW = PromptRow("Why?", {"right": "so"}, "p.jsonl:1")


def answers(*given: tuple[str, float | None], whole: bool = True) -> PromptAnswers:
    return PromptAnswers(ROW, [Answer(text, False, whole, (reward,), reward) for text, reward in given])


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        ("花が咲いた。鳥が", "花が咲いた。"),
        ("「来た。」と彼は", "「来た。」"),
        ("It is 3.5 m. And th", "It is 3.5 m."),
        ('He said "no!" and', 'He said "no!"'),
        ("no end at al", None),
    ],
)
def test_an_answer_that_was_cut_ends_with_its_last_sentence(text: str, taken: str | None):
    assert answer_of(text, was_cut=False) == Answer(text, was_cut=False, is_whole=True)
    assert answer_of(text, was_cut=True) == Answer(taken or text, was_cut=True, is_whole=taken is not None)


def test_a_pair_has_the_best_and_the_worst_answer_of_the_nearest_length():
    pair = answers(("good", 1.0), ("bad, and long", -2.0), ("middle", 0.0), ("good, and long", 1.0), ("b", -2.0)).pair()
    assert [one.text for one in pair] == ["good, and long", "bad, and long"]


def test_there_is_no_pair_without_a_better_whole_answer_with_text():
    assert answers(("a", 1.0), ("b", 1.0), ("c", None)).pair() is None
    assert answers(("a", -1.0), ("b", -2.0), whole=False).pair() is None
    assert answers((" ", 1.0), ("b", 0.0)).pair() is None
    assert answers(("a", 1.0), ("", 0.0)).pair() is None


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        pytest.param(
            answers(("a", None), ("b", None)),
            "no rule applies to any of the 2 answers (all.jsonl)",
            id="no rule applies",
        ),
        pytest.param(answers(("a", 0.5), ("b", 0.5)), "score alike (0.5 on average)", id="all score alike"),
        pytest.param(
            PromptAnswers(ROW, [Answer(text, True, False, (), reward) for text, reward in (("a", 0.0), ("b", 1.0))]),
            "2 of 2 were cut off",
            id="all were cut off",
        ),
    ],
)
def test_the_reason_why_nothing_can_be_learned(given: PromptAnswers, reason: str):
    assert reason in nothing_to_learn(count_answers([given]), Path("all.jsonl"))


def test_answers_are_read_as_they_were_written(tmp_path: Path):
    given = answers(("春。\n", 1.0), ("b", None))
    write_answers(tmp_path / "a.jsonl", [given])
    (found,) = read_answers(tmp_path / "a.jsonl")
    assert found.row == ROW
    assert [(one.text, one.reward) for one in found.answers] == [("春。\n", 1.0), ("b", None)]


def test_line_ends_of_unicode_stay_in_their_texts(tmp_path: Path):
    odd = PromptRow([{"role": "user", "content": "a\u2028b", "weight": 1}], {"note": "\x85\u2029"}, "p.jsonl:1")
    given = [PromptAnswers(odd, [Answer("c\u2028d\u2029e\x85", False, True, (1.0, None, "no"), 1.0)])]
    write_answers(tmp_path / "a.jsonl", given)
    (found,) = read_answers(tmp_path / "a.jsonl")
    assert found.row == odd
    assert [vars(one) for one in found.answers] == [{**vars(given[0].answers[0]), "scores": [1.0, None, "no"]}]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"answers": [', '"answers": [1, '), ('"reward": 1.0', '"reward": "high"'), ('"Why?"', "5"),
        ('"Why?"', '[{"role": "user"}]'), ('"Why?"', "[]"), ('"text"', '"texts"'), ("}", ""),
    ],
)  # fmt: skip
def test_damaged_answers_are_an_error_that_names_the_line(old: str, new: str, tmp_path: Path):
    path = tmp_path / "a.jsonl"
    write_answers(path, [answers(("a", 1.0)), answers(("b", 1.0))])
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1].replace(old, new, 1)]))
    with refused(r"a\.jsonl:2"):
        read_answers(path)


def test_answers_that_were_changed_after_their_digest_are_not_read(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    write_answers(path, [answers(("a", 1.0))])
    assert not check_digest(path)
    write_digest(path)
    assert check_digest(path)
    assert len(read_answers(path)) == 1
    path.write_text(path.read_text().replace("1.0", "2.0"))
    with refused(r"a\.jsonl has changed"):
        read_answers(path)
    path.unlink()
    with refused(r"a\.jsonl has changed"):
        check_digest(path)
