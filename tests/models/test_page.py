"""The tables of the guide to models."""

from functools import cache
from pathlib import Path

from tests.models.life import CHECKS, Life
from tests.models.page import fill, tables_of
from tsugiki.report import Table

LIVES = [
    Life("llama", "causal", ["model.layers.*.self_attn.q_proj"], [], "position_ids"),
    Life(
        "qwen3_moe", "causal", ["m.q_proj", "m.k_proj"], ["m.experts.down_proj"], "separate_rows", {"PEFT": "0.5 off"}
    ),
    Life("xlnet", "causal", ["m.q_proj"], [], "", {"isolation": "attends to later tokens"}),
    Life("dia", "speech", failed={"build": "RuntimeError"}),
]


@cache
def tables() -> dict[str, Table]:
    return tables_of(LIVES)


def rows(name: str, japanese: bool = False) -> list[list[str]]:
    text = fill(f"<!-- table: {name} -->\nold\n<!-- end of table -->", tables(), japanese)
    assert "old" not in text
    return [line.strip("| ").split(" | ") for line in text.splitlines()[3:-1]]


def test_the_summary_counts_what_passes_every_check():
    assert rows("summary") == [["causal", "3", "1", "2", "1"], ["speech", "1", "0", "0", "0"]]


def test_a_type_has_a_row_with_its_targets_and_checks():
    found = {row[0]: row[1:] for row in rows("types")}
    assert found.keys() == {"llama", "qwen3_moe", "xlnet"}
    every = len(CHECKS)
    assert found["llama"] == ["causal", "q_proj", "–", "position ids", "yes", "llama", f"{every - 1} of {every - 1}"]
    assert found["qwen3_moe"][1:6] == ["q_proj k_proj", "down_proj", "separate rows", "no", "–"]
    assert found["qwen3_moe"][-1] == f"{every - 1} of {every}"


def test_a_failure_has_its_reason_in_both_languages():
    reasons = {row[0]: row[-1] for row in rows("failures")}
    assert reasons["qwen3_moe"] == "0.5 off"  # nothing is known of it
    assert "later tokens" in reasons["xlnet"]
    assert "tiny models" in reasons["dia"]
    assert all(row[-1] != reasons[row[0]] for row in rows("failures", japanese=True) if row[0] != "qwen3_moe")


def test_the_guides_have_every_table():
    for guide in ("docs/models.md", "docs/models.ja.md"):
        text = (Path(__file__).parents[2] / guide).read_text(encoding="utf-8")
        assert fill(text, tables(), japanese=False).count("<!-- end of table -->") == len(tables())
