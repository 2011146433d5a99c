"""The command line: the whole way of an adapter, and errors that nobody foresaw."""

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from tests.runs import TRAIN
from tests.tiny import TEXT, logits
from tsugiki import load_adapter


def test_the_whole_way(base: str, run, tmp_path: Path):
    status, out, err = run("train", "--model", base, *TRAIN, "--r", "4", "--prompts", "枝を")
    assert status == 0
    assert "perplexity" in out
    assert "adapter: run" in out
    assert "枝を" in out
    assert "one document: its last 10% is held out" in err

    before, after = map(json.loads, run("eval", "--adapter", "run", "--data", "text.txt", "--json")[1].splitlines())
    assert {"loss", "perplexity", "bits_per_char", "tokens", "characters"} <= set(after)
    assert after["loss"] < before["loss"]
    assert after["tokens"] == before["tokens"] == len(TEXT.encode())
    assert "bits/char" in run("eval", "--model", base, "--data", "text.txt")[1]

    status, first, _ = run("generate", "--model", base, "--adapter", "run", "--prompt", "枝", "--max-new-tokens", "9")
    assert status == 0
    assert first.startswith("枝")

    status, out, _ = run("merge", "--model", base, "--adapter", "run", "--out", "merged")
    assert status == 0
    assert "changes the logits by up to" in out
    merged, adapted = AutoModelForCausalLM.from_pretrained("merged"), AutoModelForCausalLM.from_pretrained(base)
    load_adapter(adapted, "run")
    assert float((logits(merged) - logits(adapted)).abs().max()) < 1e-4
    assert run("eval", "--model", "merged", "--data", "text.txt")[0] == 0


def test_debug_shows_the_traceback(run):
    assert "Traceback" not in run("eval", "--model", "./nowhere", "--data", "x")[2]
    assert "Traceback" in run("eval", "--model", "./nowhere", "--data", "x", "--debug")[2]


def test_a_panic_of_a_library_in_rust_is_one_line(run, monkeypatch: pytest.MonkeyPatch):
    def panic(*_: object, **__: object) -> None:
        raise type("PanicException", (BaseException,), {})("index out of bounds")

    monkeypatch.setattr("tsugiki.cli.main._run", panic)
    status, _, err = run("methods")
    assert status == 1
    assert err.startswith("tsugiki: unexpected PanicException: index out of bounds")
    assert err.count("\n") == 1
