"""`tsugiki train --preference`, `preview`, `eval --pairs`: what they print."""

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


def test_a_run_shows_pairs_in_both_languages_and_names_what_is_left_out(
    pairs: list[dict[str, str]], run, monkeypatch: pytest.MonkeyPatch
):
    left_out = ({"prompt": "x", "chosen": "a", "rejected": "a"}, {"prompt": "y", "chosen": "", "rejected": "z"})
    write([*pairs, *left_out])
    for language, first, second in (("en", "accuracy", "held-out pairs"), ("ja", "正答率", "評価用の組")):
        monkeypatch.setenv("TSUGIKI_LANG", language)
        status, out, err = run("train", *FLAGS, "--preference-settings", "beta=5", "--overwrite")
        assert (status, first in out, second in out + err) == (0, True, True), err
        assert [said for said in ("pairs.jsonl:25", "pairs.jsonl:26", "beta") if said not in err] == []
    assert read_record(Path("run")).kept_step is not None
    assert Path("run/report.html").read_text(encoding="utf-8").count("<svg") >= 5


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
            prompt, given = (tokenizer(text, add_special_tokens=False).input_ids for text in (row["prompt"], answer))
            prompt = [tokenizer.bos_token_id, *prompt]
            ids = [*prompt, *given, tokenizer.eos_token_id]
            with torch.no_grad():
                log_p = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
            sums.append(float(log_p[range(len(ids) - 1), ids[1:]][len(prompt) - 1 :].sum()))
    chosen, rejected = sums[0::2], sums[1::2]
    assert base["by_sum"]["chosen"] == pytest.approx(sum(chosen) / 24, rel=1e-4)
    assert base["by_sum"]["rejected"] == pytest.approx(sum(rejected) / 24, rel=1e-4)
    assert base["by_sum"]["right"] == [float(one > other) for one, other in zip(chosen, rejected, strict=True)]
    assert adapted["by_sum"]["margin"] > base["by_sum"]["margin"]
    table = run("eval", "--pairs", "pairs.jsonl", "--adapter", "run")[1]
    assert "24 pairs" in table
    found = evaluate(pairs="pairs.jsonl", adapter="run")
    assert [one.by_sum.chosen for one in found.values()] == [base["by_sum"]["chosen"], adapted["by_sum"]["chosen"]]
