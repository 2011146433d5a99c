"""JSON files and their errors."""

from pathlib import Path

import pytest

from tsugiki.errors import TsugikiError
from tsugiki.io.json import read_json, value_text, write_json


def test_what_is_written_is_read(tmp_path: Path):
    path = tmp_path / "a.json"
    write_json(path, {"名前": [1, None, "漱石"]})
    assert "漱石" in path.read_text(encoding="utf-8")
    assert read_json(path) == {"名前": [1, None, "漱石"]}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", ["[1]", "{", "\xff", "1"])
def test_errors_name_the_file(tmp_path: Path, content: str):
    path = tmp_path / "a.json"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(TsugikiError, match=r"a\.json"):
        read_json(path)


def test_a_missing_file_has_the_callers_message(tmp_path: Path):
    with pytest.raises(TsugikiError, match="no adapter here"):
        read_json(tmp_path / "a.json", missing="no adapter here")
    with pytest.raises(TsugikiError, match=r"a\.json .*missing"):
        read_json(tmp_path / "a.json")


def test_a_value_in_one_line():
    assert value_text("漱石") == "漱石"
    assert value_text(["漱石", 1]) == '["漱石", 1]'
