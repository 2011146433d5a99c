"""The names of a reading are replaced by those of another reading of the same content."""

import pytest

from tsugiki.data import Reading, renamed

NAMES = {"a/x.txt": "b/x.txt", "a/x.txt.md": "b/x.txt.md", "a/t.zip": "c/t.zip", "own/data": "own/data"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a/x.txt", "b/x.txt"),
        ("a/x.txt:12", "b/x.txt:12"),
        ("a/x.txt (its end)", "b/x.txt (its end)"),
        ("a/x.txt.md", "b/x.txt.md"),
        ("a/t.zip/f/rows.jsonl:3", "c/t.zip/f/rows.jsonl:3"),
        ("own/data:7", "own/data:7"),
        ("a/x.txt2", "a/x.txt2"),
        ("elsewhere", "elsewhere"),
        ("", ""),
    ],
)
def test_the_file_at_the_beginning_of_a_name_is_replaced(name: str, expected: str):
    assert renamed(name, NAMES) == expected


def test_files_that_were_passed_over_are_those_of_the_present_folder():
    written = Reading(
        files=["a/t.zip", "a/x.txt"],
        works=["a/x.txt"],
        unresolved=2,
        empty=["a/t.zip/e.txt"],
        passed_over=["a/old.pdf", "a/t.zip/old.png"],
    )
    now = Reading(files=["b/t.zip", "b/x.txt"], passed_over=["b/new.doc"])
    assert written.renamed(now) == Reading(
        files=now.files,
        works=["b/x.txt"],
        unresolved=2,
        empty=["b/t.zip/e.txt"],
        passed_over=["b/new.doc", "b/t.zip/old.png"],
    )
    assert written.renamed(Reading()) is written
