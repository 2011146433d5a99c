"""YAML of settings: what it can hold, and what is refused before it takes time or memory."""

import os
import threading
from pathlib import Path

import pytest

from tests.errors import assert_refused, refused
from tsugiki.io import parse_yaml, read_yaml


def test_values_of_settings():
    text = "a: 1\nb: [x, 1.5, true, null, 0x1f, .inf, '2']\nc: {d: {}}\n'1': |\n  two\n  lines\n"
    assert parse_yaml(text, "x") == {
        **{"a": 1, "b": ["x", 1.5, True, None, 31, float("inf"), "2"], "c": {"d": {}}, "1": "two\nlines\n"}
    }


def test_what_looks_like_a_date_is_a_text():
    assert parse_yaml("data: 2020-01-01\nout: 2020-13-45", "x") == {"data": "2020-01-01", "out": "2020-13-45"}


ALIASES = "a: &a [" + ",".join("x" * 9) + "]\n" + "".join(f"b{i}: &b{i} [{'*a,' * 9}]\n" for i in range(9))

REFUSED = {
    "aliases": (ALIASES, "line 2: aliases"),
    "a circle": ("&a [*a]", "line 1: aliases"),
    "brackets": ("[" * 2000, "line 1: .*50 levels"),
    "indentation": ("".join(f"{' ' * i}a:\n" for i in range(200)), "line 50: .*50 levels"),
    "size": ("a: b\n" * 50_000, "200,000 characters"),
    "a long number": ("a:\n  b: " + "9" * 5000, "integer string conversion"),
    "a number": ("!!int x", "invalid literal"),
    "an object": ("!!python/name:os.system", "line 1: .*os.system"),
    "a number as a name": ("lora: {1: 2}", "line 1: the name 1 "),
    "a list as a name": ("? [a]\n: b", "line 1: .*unhashable"),
    "a code that is very large": ('"\\UFFFFFFFF"', "too large|range"),  # the second from Python 3.13 on
    "a surrogate": ('a: "\\uD800"', "line 1: .*surrogate"),
    "a null character": ('a: "\\0"', "line 1: .*null"),
    "brackets that are open": ("a: [", "line 1: "),
    "a full-width colon": ("a: b\nc：d\ne: f", "full-width colon"),
    "two documents": ("a\n---\nb", "line 2: "),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_settings_do_not_need_is_refused(case: str):
    text, fact = REFUSED[case]
    with refused(f"^x.yaml .*{fact}") as caught:
        parse_yaml(text, "x.yaml")
    assert len(str(caught.value)) < 500


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="the system has no file without an end")
def test_a_file_is_read_up_to_the_limit():
    assert_refused("200,000 characters", read_yaml, Path("/dev/zero"))


@pytest.mark.parametrize(
    ("name", "fact"),
    [("folder", "folder cannot be read"), ("missing", "missing"), ("latin", "latin cannot be read: .*utf-8")],
    ids=["a folder", "a missing file", "another encoding"],
)
def test_a_file_that_cannot_be_read_is_refused(name: str, fact: str, tmp_path: Path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "latin").write_bytes(b"a: \xe9")
    assert_refused(fact, read_yaml, tmp_path / name)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_a_pipe_can_be_read(tmp_path: Path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=("a: 1",))
    writer.start()
    assert read_yaml(pipe) == {"a": 1}
    writer.join()
