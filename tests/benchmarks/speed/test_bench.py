"""`python -m benchmarks.speed`: what it prints and writes, and errors for bad input."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from benchmarks.speed.__main__ import main
from benchmarks.speed.runner import Measurement

from benchmarks.speed import bench
from tests.errors import assert_refused
from tests.files import json_of
from tests.tiny import save_tiny


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("text")
    return save_tiny(tmp_path / "base")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[str, str]]:
    """Run the command in this process: (standard output, standard error)."""

    def call(*arguments: str) -> tuple[str, str]:
        main(arguments)
        return tuple(capsys.readouterr())

    return call


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step takes a second."""

    def measure(entries, workload, rounds, show, steps):
        show("round 1 of 1")
        limit = {"fp32": {"tokens_per_second": 500.0, "causal_tokens_per_second": 600.0, "seconds": {}}}
        return [
            Measurement(name, {}, [[1.0] * steps] * rounds, 10, 30, 20, limit if name == "limit" else {})
            for name in entries
        ]

    monkeypatch.setattr(bench, "measure", measure)


def test_the_list_names_models_and_entries(run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("benchmarks.speed.entries.find_spec", lambda package: None)
    out, _ = run("--list")
    assert all(name in out for name in ("gpt2-small", "embedded", "peft-bf16", "trl-dpo-best"))
    assert "'.[dev]'" in out, "rich must not read brackets as markup"


def test_a_measurement(base: str, run, fast, tmp_path: Path):
    out, err = run("--model", base, "--batch", "2", "--length", "64", "--rounds", "3", "--out", "figures")
    assert "round 1 of 1" in err
    assert "128" in out
    assert "limit, fp32" in out
    results = json_of(tmp_path / "figures" / "results.json")
    assert [row["name"] for row in results["rows"]] == ["chapter", "peft-fp32", "peft-bf16", "trl", "tsugiki"]
    assert results["rows"][0]["tokens_per_second"] == 128
    assert results["command"].startswith("python -m benchmarks.speed --model ")
    assert results["limits"]["fp32"]["tokens_per_second"] == 500
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"results.json", "table.md", "plot.svg"}


def test_pairs_are_counted_instead_of_tokens(base: str, run, fast, tmp_path: Path):
    given = ("--preference", "--model", base, "--batch", "3", "--length", "64", "--prompt", "48", "--out", "figures")
    assert "pairs/s" in run(*given)[0]
    assert "3 pairs per step, 48 tokens of prompt, 16 of answer" in (tmp_path / "figures" / "table.md").read_text()
    results = json_of(tmp_path / "figures" / "results.json")
    names = ["trl-dpo", "trl-dpo-best", "tsugiki-dpo", "tsugiki-dpo-recompute"]
    assert [row["name"] for row in results["rows"]] == names
    assert (results["rows"][0]["tokens_per_second"], results["limits"]) == (3, {})


@pytest.mark.parametrize(
    ("arguments", "fact"),
    [
        (("--entries", "chaptre"), "'chaptre'; choose from chapter, peft-fp32"),
        (("--model", "./nowhere"), "known shapes are gpt2-small, rinna-medium, smollm2-135m"),
        (("--length", "2000"), "--length is 2000, but the context of"),
        (("--out", "text.txt"), "text.txt is a file"),
        (("--preference", "--length", "8", "--prompt", "7"), "--prompt 7"),
        (("--preference", "--entries", "trl"), "'trl'; choose from trl-dpo, trl-dpo-best, tsugiki-dpo"),
    ],
)
def test_bad_input_is_one_line(arguments: tuple[str, ...], fact: str, base: str, run, fast):
    assert_refused(re.escape(fact), run, "--model", base, *arguments)


def test_too_little_memory_is_reported_before_loading(run, fast, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tsugiki.training.tools.memory.available", lambda: 300_000_000)
    assert_refused(r"497\.76 MB.*300\.00 MB free", run, "--entries", "chapter")
    out, _ = run("--entries", "chapter,peft-bf16")
    assert "not enough memory" in out
