"""How the language is chosen."""

import subprocess
import sys

import pytest

from tsugiki.language import _, choose_language, language


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, "en"),
        ({"LANG": "ja_JP.UTF-8"}, "ja"),
        ({"LANG": "ja_JP.UTF-8", "LC_MESSAGES": "de_DE.UTF-8"}, "en"),
        ({"LANG": "de_DE.UTF-8", "LC_ALL": "ja_JP.eucJP", "LC_MESSAGES": "C"}, "ja"),
        ({"LC_ALL": "", "LANG": "ja_JP.UTF-8"}, "ja"),
        ({"LANG": "ja_JP.UTF-8", "TSUGIKI_LANG": "en"}, "en"),
        ({"LANG": "C", "TSUGIKI_LANG": "ja"}, "ja"),
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
