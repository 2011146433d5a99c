"""`tsugiki.json`: written and read."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.errors import assert_refused
from tsugiki.adapters import BaseReference, Metadata, read_metadata, write_metadata


def read(folder: Path, content: Any) -> Metadata:
    (folder / "tsugiki.json").write_text(json.dumps(content))
    return read_metadata(folder)


def test_names_that_are_no_unicode_are_written(tmp_path: Path):
    write_metadata(tmp_path, Metadata(base=BaseReference(name="\udcff/base")))
    assert read_metadata(tmp_path).base.name == "?/base"


@pytest.mark.parametrize(
    ("content", "fact"),
    [
        ({"format": 2, "bases": {}}, "bases"),
        ({"format": 2, "provenance": {"sources": []}}, r"provenance\.operation"),
        ({"format": 3}, "format 3"),
        ([], "JSON object"),
    ],
)
def test_a_wrong_or_missing_key_is_named(content: Any, fact: str, tmp_path: Path):
    assert_refused(rf"tsugiki\.json.*{fact}", read, tmp_path, content)
