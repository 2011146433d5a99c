"""`tsugiki bench`: what it prints and writes, and one-line errors for bad input."""

import json
from pathlib import Path

import pytest

from tsugiki.bench import Measurement, bench


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
    monkeypatch.setattr("tsugiki.bench.entries.find_spec", lambda package: None)
    status, out, _ = run("bench", "--list")
    assert status == 0
    for name in ("gpt2-small", "qwen3-1.7b", "embedded", "chapter", "peft-bf16", "tsugiki-int8", "trl-dpo-best"):
        assert name in out
    assert "tsugiki[bench]" in out, "rich must not read brackets as markup"


def test_a_measurement(base: str, run, fast, tmp_path: Path):
    status, out, err = run(
        "bench", "--model", base, "--batch", "2", "--length", "64", "--rounds", "3", "--out", "figures"
    )
    assert status == 0
    assert "round 1 of 1" in err
    assert "128" in out
    assert "limit, fp32" in out
    results = json.loads((tmp_path / "figures" / "results.json").read_text())
    assert [row["name"] for row in results["rows"]] == ["chapter", "peft-fp32", "peft-bf16", "trl", "tsugiki"]
    assert results["rows"][0]["tokens_per_second"] == 128
    assert results["command"].startswith("tsugiki bench --model ")
    assert results["limits"]["fp32"]["tokens_per_second"] == 500
    assert {"processor", "threads"} <= set(results["machine"])
    assert (tmp_path / "figures" / "table.md").read_text().count("| chapter |") == 1
    assert (tmp_path / "figures" / "plot.svg").read_text().startswith("<?xml")


def test_pairs_are_counted_instead_of_tokens(base: str, run, fast, tmp_path: Path):
    given = ("--preference", "--model", base, "--batch", "3", "--length", "64", "--prompt", "48", "--out", "figures")
    status, out, _ = run("bench", *given)
    assert status == 0
    assert "pairs/s" in out
    assert "3 pairs per step, 48 tokens of prompt, 16 of answer" in (tmp_path / "figures" / "table.md").read_text()
    results = json.loads((tmp_path / "figures" / "results.json").read_text())
    names = ["trl-dpo", "trl-dpo-best", "tsugiki-dpo", "tsugiki-dpo-recompute"]
    assert [row["name"] for row in results["rows"]] == names
    assert (results["rows"][0]["tokens_per_second"], results["limits"]) == (3, {})
    status, out, _ = run("bench", "--preference", "--model", base, "--length", "64", "--entries", "tsugiki-dpo")
    assert status == 0
    assert "32 tokens of prompt, 32 of answer" in out
    assert "trl-dpo" not in out


def test_entries_by_name(base: str, run, fast):
    status, out, _ = run("bench", "--model", base, "--length", "16", "--entries", "tsugiki, peft-bf16")
    assert status == 0
    assert out.index("tsugiki") < out.index("peft-bf16")


@pytest.mark.parametrize(
    ("arguments", "fact"),
    [
        (("--entries", "chaptre"), "'chaptre'; choose from chapter, peft-fp32"),
        (("--model", "./nowhere"), "known shapes are gpt2-small, rinna-medium, smollm2-135m"),
        (("--batch", "0"), "--batch"),
        (("--rounds", "0"), "--rounds"),
        (("--length", "2000"), "--length is 2000, but the context of"),
        (("--out", "text.txt"), "text.txt is a file"),
        (("--prompt", "8"), "--preference"),
        (("--preference", "--length", "8", "--prompt", "7"), "--prompt 7"),
        (("--preference", "--entries", "trl"), "'trl'; choose from trl-dpo, trl-dpo-best, tsugiki-dpo"),
    ],
)
def test_bad_input_is_one_line(arguments: tuple[str, ...], fact: str, base: str, run, fast):
    status, out, err = run("bench", "--model", base, *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert fact in err


def test_too_little_memory_is_reported_before_loading(run, fast, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tsugiki.training.tools.memory.available", lambda: 300_000_000)
    status, _, err = run("bench", "--entries", "chapter")
    assert (status, err.count("\n")) == (2, 1)
    assert "497.76 MB" in err
    assert "300.00 MB free" in err
    status, out, _ = run("bench", "--entries", "chapter,peft-bf16")
    assert status == 0
    assert "not enough memory" in out


def test_no_measurement_is_an_error_with_the_reason(base: str, run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bench, "measure", lambda entries, *_: [Measurement(n, problem="no luck") for n in entries])
    status, _, err = run("bench", "--model", base, "--length", "64", "--entries", "chapter")
    assert (status, err.count("\n")) == (2, 1)
    assert "no entry could be measured: chapter: no luck" in err
