"""Commands end with the command that is useful next, complete and quoted for the shell."""

import io
import shlex
from pathlib import Path

import pytest

from tests.docs.test_architecture import problem_of
from tests.runs import TRAIN


def next_words(out: str) -> list[str]:
    """The words of the command in the last line, after `tsugiki`."""
    line = out.splitlines()[-1]
    assert line.startswith("next: tsugiki ")
    words = shlex.split(line.removeprefix("next: tsugiki "))
    assert problem_of(words) is None
    return words


@pytest.mark.slow
def test_from_the_preview_to_the_merged_model(base: str, run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "text.txt").rename(tmp_path / "my text.txt")
    status, out, _ = run("preview", "--model", base, "--data", "my text.txt", "--max-steps", "2", "--block-size", "32")
    assert status == 0
    status, out, _ = run(*next_words(out), "--prompts", "it's 枝")
    assert (status, (tmp_path / "runs" / "my text" / "run.json").exists()) == (0, True)
    status, out, _ = run(*next_words(out), "--max-new-tokens", "3")
    assert (status, "it's 枝" in out) == (0, True)
    status, out, _ = run("adapters", "add", "runs/my text", "--name", "two words", "--library", "a library")
    monkeypatch.setattr("sys.stdin", io.StringIO("/quit\n"))
    assert (status, run(*next_words(out))[0]) == (0, 0)
    status, out, _ = run("merge", "--adapter", "runs/my text", "--out", "merged", "--no-verify")
    monkeypatch.setattr("sys.stdin", io.StringIO("/quit\n"))
    assert (status, run(*next_words(out))[0]) == (0, 0)


def test_what_was_tried_is_kept_and_then_served(trained: str, run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TSUGIKI_ADAPTERS", str(tmp_path / "library"))
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert next_words(run("report", "run")[1]) == ["chat", "run"]
    written = run("generate", "--adapter", "run", "--prompt", "x", "--max-new-tokens", "2")
    assert "next:" not in written[1]
    assert next_words(written[2]) == ["chat", "run"]
    assert next_words(run("chat", "run")[2]) == ["adapters", "add", "run"]
    assert next_words(run("eval", "--adapter", "run", "--data", "text.txt")[2]) == ["adapters", "add", "run"]
    assert next_words(run("adapters", "add", "run", "--name", "kept")[1]) == ["chat", "kept"]
    assert next_words(run("chat", "kept", "--model", trained)[2]) == ["serve", "--adapter", "kept", "--model", trained]
    assert next_words(run("adapters", "list")[1]) == ["adapters", "show", "kept"]
    assert next_words(run("adapters", "show", "kept")[1]) == ["chat", "kept"]
    assert next_words(run("adapters", "rename", "kept", "other")[1]) == ["chat", "other"]
    sent = ["push", "other", "me/other", "--base", "none"]
    assert next_words(run(*sent, "--dry-run")[2]) == sent
    assert next_words(run("chat", "--model", trained)[2]) == ["serve", "--model", trained]
    assert run("eval", "--adapter", "run", "--data", "text.txt", "--json")[2].find("next:") == -1


def test_a_run_without_prompts_leads_to_a_chat(base: str, run):
    assert next_words(run("train", "--model", base, *TRAIN)[1]) == ["chat", "run"]
    full = run("train", "--model", base, *TRAIN, "--out", "full", "--method", "full")[1]
    assert next_words(full) == ["chat", "--model", "full"]
