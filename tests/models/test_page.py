"""The tables of the guide to models."""

from functools import cache
from pathlib import Path

from tests.models.life import Life
from tests.models.page import fill, tables_of
from tsugiki.report import Table

LIVES = [
    Life("llama", "causal", ["model.layers.*.self_attn.q_proj"], [], "position_ids"),
    Life(
        "qwen3_moe", "causal", ["m.q_proj", "m.k_proj"], ["m.experts.down_proj"], "separate_rows", {"PEFT": "0.5 off"}
    ),
    Life("xlnet", "causal", ["m.q_proj"], [], "", {"isolation": "attends to later tokens"}),
    Life("xlm", "causal", failed={"isolation": "attends to later tokens"}),
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
    assert rows("summary") == [["causal", "4", "1", "2", "1"], ["speech", "1", "0", "0", "0"]]


def test_types_with_the_same_layers_share_a_row():
    assert rows("types") == [["llama, xlnet", "q_proj", "–"], ["qwen3_moe†", "of their own", "of their own"]]
    assert rows("types", japanese=True)[1][1:] == ["種類ごとに異なる"] * 2


def test_types_that_llama_cpp_loads_are_listed():
    assert rows("exported") == [["llama"]]


def test_failures_of_one_reason_share_a_row_in_both_languages():
    reasons = {row[0]: row[-1] for row in rows("failures")}
    assert reasons["qwen3_moe"] == "0.5 off"  # nothing is known of it
    assert "later tokens" in reasons["xlnet, xlm"]
    assert "tiny models" in reasons["dia"]
    assert all(row[-1] != reasons[row[0]] for row in rows("failures", japanese=True) if row[0] != "qwen3_moe")


def test_the_guides_have_every_table():
    for guide in ("docs/models.md", "docs/models.ja.md"):
        text = (Path(__file__).parents[2] / guide).read_text(encoding="utf-8")
        assert fill(text, tables(), japanese=False).count("<!-- end of table -->") == len(tables())
