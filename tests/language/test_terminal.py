"""Help and preview in a pseudo terminal of 70 columns in Japanese, and of 100 columns in the locale C.

A line of the output never has more columns than the terminal, where a Japanese character takes two, and nothing is
replaced by an ellipsis.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.cells import cell_len

from tests.docs.test_architecture import ANYWHERE, flags

pty = pytest.importorskip("pty")
termios = pytest.importorskip("termios")

_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")
_TERMINALS = pytest.mark.parametrize(("columns", "locale"), [(70, "ja_JP.UTF-8"), (100, "C")])


@_TERMINALS
def test_help_of_train_fits(columns: int, locale: str) -> None:
    assert all(f" {name}" in _run(columns, locale, "--help") for name in flags() if " " not in name)
    out = _run(columns, locale, "train", "--help-all")
    assert [flag for flag in flags()["train"] - ANYWHERE if flag not in out] == []
    text, *examples = re.split(r"\n(?:例|Examples)\n", out)
    assert examples
    _check(text, columns, locale)


@_TERMINALS
def test_short_help_is_a_part_of_the_long_one(columns: int, locale: str) -> None:
    out = _run(columns, locale, "train", "--help")
    shown = [flag for flag in flags()["train"] if re.search(rf"^ +{flag}[ ,]", out, re.MULTILINE)]
    assert {"--model", "--data", "--out", "--epochs", "--r", "--resume", "--help-all"} <= {*shown}
    assert 15 <= len(shown) <= 22
    assert "tsugiki train --help-all" in out
    _check(out.partition("--help-all\n\n")[0], columns, locale)


@pytest.mark.slow
@_TERMINALS
def test_preview_fits(columns: int, locale: str, tmp_path: Path) -> None:
    for number in range(4):
        text = "".join(f"{number * 100 + line} 匹の猫が庭を歩いて、石の上で眠った。\n" for line in range(40))
        (tmp_path / f"{number}.txt").write_text(text, encoding="utf-8")
    out = _run(columns, locale, "preview", "--model", "embedded", "--data", str(tmp_path), "--rows", "1")
    counts = out[out.index("┌──") :]
    assert ("学習データ" if locale.startswith("ja") else "training data") in counts
    _check(counts[: counts.rindex("┘")], columns, locale)


def _check(out: str, columns: int, locale: str) -> None:
    assert [line for line in out.splitlines() if cell_len(line) > columns] == []
    assert " …" not in out.replace("….", "")
    assert bool(re.search("[ぁ-ん]", out)) == locale.startswith("ja")


def _run(columns: int, locale: str, *arguments: str) -> str:
    """Return what a command prints in a terminal of that width, without colours."""
    controller, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (50, columns))
    environment = {**os.environ, "LC_ALL": locale, "TERM": "xterm-256color", "TSUGIKI_LANG": ""}
    environment.pop("COLUMNS", None)
    process = subprocess.Popen(
        [sys.executable, "-m", "tsugiki", *arguments], stdin=terminal, stdout=terminal, stderr=terminal, env=environment
    )
    os.close(terminal)
    out = b""
    while True:
        try:
            part = os.read(controller, 65536)
        except OSError:  # Linux tells so that the other end is closed
            break
        if not part:
            break
        out += part
    os.close(controller)
    assert process.wait() == 0
    return _ANSI.sub("", out.decode())
