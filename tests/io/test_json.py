"""JSON files and their errors."""

import os
import re
from pathlib import Path

import pytest

from tests.errors import assert_refused, refused
from tsugiki.io import read_json, value_text, write_json
from tsugiki.io.json import parse_json
from tsugiki.io.yaml import parse_yaml


def test_what_is_written_is_read(tmp_path: Path):
    path = tmp_path / "a.json"
    write_json(path, {"名前": [1, None, "漱石"]})
    assert "漱石" in path.read_text(encoding="utf-8")
    assert read_json(path) == {"名前": [1, None, "漱石"]}
    assert list(tmp_path.iterdir()) == [path]
    assert [value_text(value) for value in ("漱石", ["漱石", 1])] == ["漱石", '["漱石", 1]']


@pytest.mark.parametrize(
    "content",
    [
        "[1]",
        "{",
        "\xff",
        "1",
        "[" * 100_000,
        '{"a": ' + "[" * 200 + "]" * 200 + "}",
        '{"a": ' + "9" * 200 + "}",
        '{"b": {"a": 1, "a": 2}}',
    ],
    ids=["list", "open", "encoding", "number", "brackets", "deep", "long integer", "a name twice"],
)
def test_errors_name_the_file(tmp_path: Path, content: str):
    path = tmp_path / "a.json"
    path.write_text(content, encoding="latin-1")
    with refused(r"a\.json") as caught:
        read_json(path)
    assert len(str(caught.value).removeprefix(str(path))) < 400


def test_a_byte_order_mark_is_not_part_of_the_content(tmp_path: Path):
    (tmp_path / "a.json").write_text('{"a": 1}', encoding="utf-8-sig")
    assert read_json(tmp_path / "a.json") == {"a": 1}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_devices_pipes_and_folders_are_not_read(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "link"):
        assert_refused("not a file", read_json, path)


def test_a_missing_file_has_the_callers_message(tmp_path: Path):
    assert_refused("no adapter here", read_json, tmp_path / "a.json", missing="no adapter here")
    assert_refused(r"a\.json .*missing", read_json, tmp_path / "a.json")


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('{"a": }', "7 文字目"),
        ("{\n'a': 1}", "2 行目の 1 文字目"),
        ('{"a": "\t"}', "8 文字目"),
        ('{"a": "', "7 文字目"),
        ("{} x", "4 文字目"),
    ],
)
def test_what_is_wrong_is_told_in_the_language_of_the_user(text: str, place: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TSUGIKI_LANG", "ja")
    with pytest.raises(ValueError, match=place) as caught:
        parse_json(text)
    assert not re.search("[a-zA-Z]{2}", str(caught.value))


@pytest.mark.parametrize("text", ["a:\n\tb: 1", "a: b: c", "a: 'x", "a: 1\nb\nc: 2", "a:\n  b: 1\n c: 2"])
def test_what_is_wrong_in_yaml_as_well(text: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TSUGIKI_LANG", "ja")
    with refused("行目") as caught:
        parse_yaml(text, "a")
    assert not re.search("[a-z]{2}", str(caught.value))
