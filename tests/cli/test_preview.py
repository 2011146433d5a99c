"""`tsugiki preview` from the command line."""

import json
from pathlib import Path


def test_preview_writes_nothing_but_its_page(base: str, run, tmp_path: Path):
    before = set(tmp_path.iterdir())
    status, out, _ = run("preview", "--model", base, "--data", "text.txt", "--block-size", "32", "--html", "p.html")
    assert status == 0
    assert "near-duplicates" in out
    assert {path.name for path in set(tmp_path.iterdir()) - before} == {"p.html"}
    assert "<title>Preview" in (tmp_path / "p.html").read_text()


def test_a_run_with_a_rule_shows_answers_and_their_rewards(base: str, run):
    Path("prompts.jsonl").write_text(json.dumps({"prompt": "ab"}))
    settings = ("--reward", "regex:.", "--reward-settings", "tokens=3", "--held-out", "none", "--validation", "none")
    status, out, _ = run("preview", "--model", base, "--data", "prompts.jsonl", *settings)
    assert status == 0
    assert out.startswith("ab\n")
    assert out.count("│ 1      │") == 3
    assert run("preview", "--model", base, "--data", "prompts.jsonl", *settings, "--html", "p.html")[0] == 2
