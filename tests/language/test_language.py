"""How the language is chosen."""

import re
import subprocess
import sys

import pytest

from tests.language.catalogue import template
from tsugiki.language import PAGE, _, choose_language, language, speaking
from tsugiki.training import RunConfig

_OF_COMMANDS = frozenset(
    f"src/tsugiki/{file}.py"
    for file in (
        "data/read/aozora/index", "data/read/aozora/works", "export/gguf_model", "report/methods", "training/run/merge",
        "training/model/sharding", "training/score/targets", "training/settings/files", "training/tools/processes",
    )
)  # fmt: skip
"""Modules whose messages only commands show."""


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, "en"),
        ({"LANG": "ja_JP.UTF-8"}, "ja"),
        ({"LANG": "ja_JP.UTF-8", "LC_MESSAGES": "de_DE.UTF-8"}, "en"),
        ({"LANG": "de_DE.UTF-8", "LC_ALL": "ja_JP.eucJP", "LC_MESSAGES": "C"}, "ja"),
        ({"LANG": "ja_JP.UTF-8", "TSUGIKI_LANG": "en"}, "en"),
        ({"LANG": "ja_JP.UTF-8", "TSUGIKI_LANG": "fr"}, "ja"),
    ],
)
def test_language_by_variables(variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TSUGIKI_LANG", "LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert language() == expected


def test_a_message_is_in_the_language_of_the_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TSUGIKI_LANG", "en")
    assert _("Options") == "Options"
    choose_language("ja")
    assert _("Options") == "オプション"


def test_a_setting_is_named_by_its_flag_and_on_a_page_by_its_label(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PAGE, raising=False)
    assert RunConfig.model_fields  # its labels are known
    message = "several processes cannot share the GPU of a Mac: start one process, or use {flag:device cpu}"
    assert _(message).endswith("use --device cpu")
    with speaking("en", on_page=True):
        assert _("choose a larger {flag:block_size}") == "choose a larger “Tokens per row”"
        assert _(message).endswith("use “device: cpu”")
    with speaking("ja", on_page=True):
        assert "「device：cpu」" in _(message)
    monkeypatch.setenv(PAGE, "1")  # a process that the page has started
    assert _("{flag:columns a=b}").format() == "“Columns: a=b”"


def test_messages_of_what_a_page_calls_name_no_flags() -> None:
    rooms = "adapters|data|export|generation|io|model|preference|report|training"
    for message in template():
        files = [file for file, _line in message.locations]
        if any(re.match(f"src/tsugiki/({rooms})/", file) and file not in _OF_COMMANDS for file in files):
            texts = [message.id] if isinstance(message.id, str) else message.id
            assert not any(re.search(r"(?<![\w-])--[a-z]", text) for text in texts), message.id


def test_option_at_any_place() -> None:
    done = _run("train", "--help", "--lang=ja")
    assert done.returncode == 0
    assert "使い方:" in done.stdout
    assert "Usage" not in done.stdout


def test_unknown_language_is_one_line() -> None:
    done = _run("--lang", "fr", "methods")
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert "en, ja" in done.stderr


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tsugiki", *arguments], capture_output=True, text=True, encoding="utf-8", check=False
    )
