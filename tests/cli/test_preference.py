"""`tsugiki train --preference`, `preview`, `eval --pairs`: what they print, and what they refuse in one line."""

import json
from pathlib import Path

import pytest
import torch

from tests.tiny import TEXT
from tsugiki import evaluate
from tsugiki.base import load_model, load_tokenizer
from tsugiki.training import read_record

FLAGS = ("--model", "base", "--out", "run", "--max-steps", "2", "--block-size", "64", "--learning-rate", "0.01")
FLAGS = (*FLAGS, "--preference", "dpo", "--data", "pairs.jsonl", "--r", "2", "--allow-overlap")


def write(rows: object, name: str = "pairs.jsonl") -> None:
    Path(name).write_text("\n".join(json.dumps(row) for row in rows))  # type: ignore[attr-defined]


@pytest.fixture
def pairs(base: str) -> list[dict[str, str]]:
    rows = []
    for number in range(24):
        text = TEXT[number * 11 : number * 11 + 7]
        rows.append({"prompt": f"{number}{text[:3]}", "chosen": text[3:], "rejected": text[3:][::-1] + "no"})
    write(rows)
    return rows


def test_a_run_shows_pairs_in_both_languages(pairs: list[dict[str, str]], run, monkeypatch: pytest.MonkeyPatch):
    status, out, err = run("train", *FLAGS)
    assert status == 0, err
    assert "accuracy" in out
    assert "held-out pairs" in err
    page = Path("run/report.html").read_text(encoding="utf-8")
    assert page.count("<svg") >= 5
    monkeypatch.setenv("TSUGIKI_LANG", "ja")
    status, out, err = run("train", *FLAGS, "--overwrite")
    assert status == 0
    assert "正答率" in out
    assert "評価用の組" in out


def test_preview_shows_both_answers_with_the_tokens_in_the_loss(pairs: list[dict[str, str]], run):
    status, out, _ = run("preview", *(flag for flag in FLAGS if flag not in ("--out", "run")), "--verbose")
    assert status == 0
    shown = [[f"{row['prompt']}⟦{row[kind]}" in out for row in pairs] for kind in ("chosen", "rejected")]
    assert shown[0] == shown[1], "also where both answers share the prompt"
    assert any(shown[0])


def test_the_log_probabilities_are_those_of_transformers(pairs: list[dict[str, str]], run):
    assert run("train", *FLAGS)[0] == 0
    status, out, err = run("eval", "--pairs", "pairs.jsonl", "--adapter", "run", "--json")
    assert status == 0, err
    base, adapted = (json.loads(line) for line in out.splitlines())
    model, tokenizer = load_model("base"), load_tokenizer("base")
    sums = []
    for row in pairs:
        for answer in (row["chosen"], row["rejected"]):
            start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
            prompt = [
                start if start is not None else end,
                *tokenizer(row["prompt"], add_special_tokens=False).input_ids,
            ]
            ids = [*prompt, *tokenizer(answer, add_special_tokens=False).input_ids, end]
            with torch.no_grad():
                log_p = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
            sums.append(float(log_p[range(len(ids) - 1), ids[1:]][len(prompt) - 1 :].sum()))
    assert base["by_sum"]["chosen"] == pytest.approx(sum(sums[0::2]) / 24, rel=1e-4)
    assert base["by_sum"]["rejected"] == pytest.approx(sum(sums[1::2]) / 24, rel=1e-4)
    assert base["by_sum"]["right"] == [float(one > other) for one, other in zip(sums[0::2], sums[1::2], strict=True)]
    assert adapted["by_sum"]["margin"] > base["by_sum"]["margin"]
    table = run("eval", "--pairs", "pairs.jsonl", "--adapter", "run")[1]
    assert "24 pairs" in table
    found = evaluate(pairs="pairs.jsonl", adapter="run")
    assert [one.by_sum.chosen for one in found.values()] == [base["by_sum"]["chosen"], adapted["by_sum"]["chosen"]]


GOOD = {"prompt": "a", "chosen": "bcd", "rejected": "efg"}
BAD = {
    "unknown loss": (GOOD, ("--preference", "dppo"), "dppo"),
    "unknown setting": (GOOD, ("--preference-settings", "betta=1"), "betta"),
    "no number": (GOOD, ("--preference-settings", "beta=much"), "beta"),
    "negative": (GOOD, ("--preference-settings", "beta=-1"), "beta"),
    "not name=value": (GOOD, ("--preference-settings", "beta"), "beta"),
    "twice": (GOOD, ("--preference-settings", "beta=1,beta=2"), "beta"),
    "with mix": (GOOD, ("--mix", "text.txt:0.1"), "mix"),
    "with a soft prompt": (GOOD, ("--method", "prompt-tuning"), "preference"),
    "equal answers": ({"prompt": "a", "chosen": "bcd", "rejected": "bcd"}, (), "pairs.jsonl:1"),
    "single answers": ({"prompt": "a", "completion": "bcd", "label": True}, (), "kto"),
    "one pair": (GOOD, (), "pairs.jsonl"),
    "no file": (GOOD, ("--data", "nowhere.jsonl"), "nowhere.jsonl"),
    "held-out file": (GOOD, ("--held-out", "text.txt"), "text.txt"),
    "settings without a loss": (GOOD, ("--no-preference",), "preference"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case: str, base: str, run):
    row, flags, named = BAD[case]
    write([row])
    given = list(FLAGS)
    if case == "settings without a loss":
        given[given.index("--preference") : given.index("--preference") + 2] = ["--preference-settings", "beta=1"]
        flags = ()
    for flag in flags[::2]:
        if flag in given:
            del given[given.index(flag) : given.index(flag) + 2]
    status, _, err = run("train", *given, *flags)
    last = err.strip().splitlines()[-1]
    assert (status, named in last) == (2, True), err
    assert "Traceback" not in err
    assert not Path("run/adapter_model.safetensors").exists()


def test_notes_name_what_is_left_out(pairs: list[dict[str, str]], run):
    write(
        [*pairs, {"prompt": "x", "chosen": "same", "rejected": "same"}, {"prompt": "y", "chosen": "", "rejected": "z"}]
    )
    status, _, err = run("train", *FLAGS, "--preference-settings", "beta=5")
    assert status == 0
    assert "pairs.jsonl:25" in err
    assert "pairs.jsonl:26" in err
    assert "beta is 5" in err
    assert read_record(Path("run")).kept_step is not None


def test_eval_of_bad_pairs_is_one_line(pairs: list[dict[str, str]], run):
    write([{"prompt": "a", "completion": "b", "label": True}], "single.jsonl")
    for flags, named in [
        (("--pairs", "single.jsonl"), "--pairs"),
        (("--pairs", "nowhere.jsonl"), "nowhere.jsonl"),
        (("--pairs", "pairs.jsonl", "--data", "text.txt"), "--pairs"),
    ]:
        status, _, err = run("eval", "--model", "base", *flags)
        assert (status, named in err.strip().splitlines()[-1]) == (2, True), err
