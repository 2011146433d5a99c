"""The support desk's files: what is counted has an answer in the rows, and none of its wordings is trained."""

import csv
import runpy
from pathlib import Path

import pytest

from tests.files import rows_of
from tsugiki.training import read_questions

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "questions" / "support_desk.py"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(SCRIPT), run_name="__main__")
    return tmp_path


def rows_of_csv(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def test_each_fact_is_trained_in_ten_wordings_and_asked_in_another(folder: Path):
    rows, others = rows_of_csv(folder / "support.csv"), rows_of_csv(folder / "other.csv")
    asked = {row["question"] for row in rows}
    assert len(asked) == len(rows) == 10 * len(others)
    questions = rows_of(folder / "questions.jsonl")
    assert [question["prompt"] for question in questions] == [row["question"] for row in others]
    assert asked.isdisjoint(question["prompt"] for question in questions)
    for question, other in zip(questions, others, strict=True):  # a right answer is that of one fact and no other
        found = {row["answer"] for row in rows if question["expected"] in row["answer"]}
        assert found == {other["answer"]}


def test_no_row_has_what_the_unknown_questions_ask_for(folder: Path):
    answers = "\n".join(row["answer"] for row in rows_of_csv(folder / "support.csv"))
    unknown = read_questions(folder / "unknown.jsonl")
    assert len(unknown) == 10
    assert [question for question in unknown if any(text in answers for text in question.expected)] == []
