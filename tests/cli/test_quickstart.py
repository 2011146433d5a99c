"""`tsugiki quickstart --questions`: what it prints, in both languages, and that its next command answers."""

import io
import re
import shlex
from functools import partial
from pathlib import Path

import pytest

from tests.cli.test_next import next_words
from tests.tiny import save_tiny
from tsugiki.base import recommended, resolve
from tsugiki.training.run import quickstart
from tsugiki.training.settings.config import RunConfig

SHORT = {"max_steps": 1, "batch_size": 1, "block_size": 512, "validation": "none"}


@pytest.fixture
def short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A tiny base in place of both, one step, and answers of two tokens."""
    monkeypatch.setenv("TSUGIKI_LANG", "en")  # --lang sets it
    base = save_tiny(tmp_path / "base", n_positions=512)
    monkeypatch.setattr(recommended, "chat_base", lambda: base)
    monkeypatch.setattr(resolve, "local_folder", lambda name: Path(base))  # also for the embedded model
    monkeypatch.setattr(quickstart, "_ANSWER", 2)
    monkeypatch.setattr(quickstart, "RunConfig", partial(RunConfig, **SHORT))
    return base


def test_it_counts_right_answers_before_and_after_and_its_commands_work(
    short: str, run, monkeypatch: pytest.MonkeyPatch
):
    status, out, err = run("quickstart", "--questions", "--out", "first")
    assert status == 0, err
    assert "the Lantern Bakery" in out
    assert re.search("20 questions .* 0 answered right, 0 before", out.replace("\n", " "))
    same = next(line for line in out.splitlines() if "tsugiki train" in line)
    words = shlex.split(same[same.index("tsugiki train") :])[1:]
    assert run(*words[: words.index("--out") + 1], "second", *words[words.index("--out") + 2 :])[0] == 0
    monkeypatch.setattr("sys.stdin", io.StringIO("Who is the cat?\n"))
    assert run(*next_words(out))[0] == 0
    assert run("quickstart", "--questions", "--out", "first")[0] == 2  # the folder exists


def test_it_speaks_japanese(short: str, run, tmp_path: Path):
    out = run("quickstart", "--questions", "--lang", "ja")[1]
    assert "猫" in out
    assert re.search("20 問.* 0 問", out.replace("\n", " "))
    assert (tmp_path / "tsugiki-questions" / "report.html").is_file()


@pytest.mark.slow
def test_the_japanese_recipe_reaches_its_goal(run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TSUGIKI_LANG", "ja")
    _status, out, _err = run("quickstart", "--questions")
    assert int(re.search(r"正答は (\d+) 問、学習前は 0 問", out.replace("\n", ""))[1]) >= 16
