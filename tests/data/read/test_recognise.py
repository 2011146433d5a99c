"""What data are is recognised by the first rows of each file."""

import json
from pathlib import Path
from typing import Any

import pytest

from tsugiki.data.read.recognise import recognise

TURNS = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.txt", "a text", "texts"),
        ("a.csv", "text,title\na,b\n", "texts"),
        ("a.csv", "質問,回答\na,b\n", "questions"),
        ("a.csv", "prompt,completion,label\na,b,true\n", "labels"),
        ("a.csv", "prompt,completion,label\na,b,greeting\n", "questions"),
        ("a.csv", "question,chosen,rejected\na,b,c\n", "pairs"),
        ("a.jsonl", json.dumps({"messages": TURNS}), "conversations"),
    ],
)
def test_kinds(tmp_path: Path, name: str, content: str, kind: str):
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert recognise(str(tmp_path / name)).kind == kind


def test_columns_and_rows(tmp_path: Path):
    rows: list[dict[str, Any]] = [{"frage": f"{number}?", "antwort": "a", "nr": number} for number in range(5)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert recognise(str(tmp_path / "a.jsonl")).kind == "table"
    columns = {"prompt": "frage", "completion": "antwort"}
    found = recognise(str(tmp_path / "a.jsonl"), columns)
    assert (found.kind, found.columns, found.rows) == ("questions", columns, rows[:3])
    (tmp_path / "a.txt").write_text("a text", encoding="utf-8")
    assert recognise([str(tmp_path / "a.txt"), str(tmp_path / "a.jsonl")], columns).kind == "mixed"
