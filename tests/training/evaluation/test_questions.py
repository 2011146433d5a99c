"""Questions with expected answers: what a file may hold, and one line for what it may not."""

import json
from pathlib import Path
from typing import Any

import pytest

from tsugiki import TsugikiError
from tsugiki.data import Completion, Conversation, Message
from tsugiki.training import Question, read_questions

TALK = [{"role": "user", "content": "When?"}]


def written(folder: Path, *rows: Any) -> Path:
    """A file with these rows."""
    file = folder / "q.jsonl"
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return file


def test_all_kinds(tmp_path: Path):
    rows = [
        {"prompt": "2 + 2 =", "expected": "4"},
        {"prompt": "", "expected": ["a", "b"], "mode": "contains"},
        {"messages": TALK, "expected": r"\d{4}", "mode": "regex"},
        {"prompt": TALK, "choices": ["red", "loud"], "expected": "red"},
    ]
    one, two, three, four = read_questions(written(tmp_path, rows[0], "", *rows[1:]))
    assert one == Question(f"{tmp_path}/q.jsonl:1", "2 + 2 =", "exact", ("4",))
    assert (two.source, two.mode, two.expected) == (f"{tmp_path}/q.jsonl:3", "contains", ("a", "b"))
    assert three.prompt == four.prompt == (Message("user", "When?"),)
    assert (three.mode, four.mode, four.choices) == ("regex", "choice", ("red", "loud"))
    assert one.answered("5") == Completion("2 + 2 =", "5", one.source)
    assert four.answered("red") == Conversation((*four.prompt, Message("assistant", "red")), four.source)


@pytest.mark.parametrize(
    ("row", "facts"),
    [
        ({"prompt": "a"}, ":1.*no expected"),
        ({"prompt": "a", "expected": []}, ":1.*expected"),
        ({"prompt": "a", "expected": 4}, ":1.*expected"),
        ({"prompt": "a", "expected": " "}, ":1.*expected"),
        ({"expected": "a"}, ":1.*no prompt"),
        ({"prompt": 3, "expected": "a"}, ":1.*no prompt"),
        ({"messages": [], "expected": "a"}, ":1.*no prompt"),
        ({"messages": None, "prompt": None, "expected": "a"}, ":1.*no prompt"),
        ({"messages": [*TALK, {"role": "assistant", "content": "x"}], "expected": "a"}, ":1.*assistant"),
        ({"messages": [{"role": "wizard", "content": "x"}], "expected": "a"}, ":1.*wizard"),
        ({"messages": ["x"], "expected": "a"}, ":1.*turn 1"),
        ({"prompt": "a", "expected": "a", "mode": "fuzzy"}, ":1.*'fuzzy'.*exact, contains, regex, choice"),
        ({"prompt": "a", "expected": "a", "mode": ["exact"]}, ":1.*unknown mode"),
        ({"prompt": "a", "expected": "(", "mode": "regex"}, ":1.*not a regular expression.*position"),
        ({"prompt": "a", "expected": "a" * 10_001, "mode": "regex"}, ":1.*10,000"),
        ({"prompt": "a", "expected": "a", "mode": "choice"}, ":1.*no choices"),
        ({"prompt": "a", "expected": "a", "choices": ["a"]}, ":1.*two or more"),
        ({"prompt": "a", "expected": "a", "choices": ["a", "a"]}, ":1.*two or more different"),
        ({"prompt": "a", "expected": "a", "choices": "ab"}, ":1.*choices"),
        ({"prompt": "a", "expected": "c", "choices": ["a", "b"]}, ":1.*'c'"),
        ({"prompt": "a", "expected": "a", "choices": ["a", "b"], "mode": "exact"}, ":1.*exact"),
        ({"prompt": "\ud800", "expected": "a"}, ":1.*surrogate"),
        ({"prompt": "a", "expected": "\udc00"}, ":1.*surrogate"),
        ("", "is empty"),
        ("[1]", ":1.*JSON object"),
        ("{", ":1.*not JSON"),
    ],
)
def test_bad_input_is_one_line_with_the_place(row: Any, facts: str, tmp_path: Path):
    with pytest.raises(TsugikiError, match=facts) as raised:
        read_questions(written(tmp_path, row))
    assert "\n" not in str(raised.value)


def test_no_file(tmp_path: Path):
    with pytest.raises(TsugikiError, match="nowhere.jsonl cannot be read"):
        read_questions(tmp_path / "nowhere.jsonl")
