"""`tsugiki.json`: written and read."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.errors import assert_refused
from tsugiki.adapters import BaseReference, Metadata, Provenance, Source, read_metadata, write_metadata


def read(folder: Path, content: Any) -> Metadata:
    (folder / "tsugiki.json").write_text(json.dumps(content))
    return read_metadata(folder)


def test_what_is_written_is_read(tmp_path: Path):
    source = Source(name="a", weights="sha256:1", weight=0.7)
    metadata = Metadata(
        base=BaseReference(name="base", fingerprint="sha256:2"),
        method_config={"freeze_A": True},
        provenance=Provenance(operation="combine", sources=(source,), settings={"rank": None}),
    )
    write_metadata(tmp_path, metadata)
    assert read_metadata(tmp_path) == metadata
    assert json.loads((tmp_path / "tsugiki.json").read_text())["format"] == 2


def test_a_folder_without_it_has_empty_metadata(tmp_path: Path):
    assert read_metadata(tmp_path) == Metadata()


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
