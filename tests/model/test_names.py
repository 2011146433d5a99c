"""Selections of names; regular expressions, which answer as those of `re` and PEFT, and of which none takes long."""

import re
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from peft.utils.other import get_pattern_key

from tests.errors import refused
from tests.tiny import tiny_model
from tsugiki import LoraConfig, TsugikiError, graft
from tsugiki.methods import BottleneckConfig, IA3Config, LNTuningConfig, SelectiveConfig
from tsugiki.model import (
    PatternTable,
    compile_pattern,
    compile_search,
    matches,
    name_pattern,
    shortest_endings,
    split_block,
)


@pytest.mark.parametrize(
    ("wanted", "selected"),
    [
        (["c_attn"], True),
        (["h.0.attn.c_attn"], True),
        (["attn"], False),
        ([], False),
        (r".*attn", True),
        ("c_attn", False),
    ],
)
def test_a_list_holds_endings_and_a_string_a_pattern_for_the_whole_name(wanted: object, selected: bool):
    assert matches("h.0.attn.c_attn", wanted) is selected  # type: ignore[arg-type]


def test_shortest_endings_are_longer_where_endings_select_more():
    assert shortest_endings(["a.x", "b.x"], ["b.y"]) == ["x"]
    assert shortest_endings(["b.y", "b.x"], ["a.x"]) == ["b.x", "y"]
    assert shortest_endings(["m.0.b.x", "m.1.b.x"], ["m.0.a.x", "x"]) == ["b.x"]
    assert shortest_endings(["m.0.x"], ["m.1.x", "n.0.x"]) == ["m.0.x"]
    assert shortest_endings(["x", "m.x"], ["n.x"]) == ["m.x", "x"]


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("model.layers.3.mlp.up_proj", ("model.layers", 3, "mlp.up_proj")),
        ("layers.3.experts.7.up_proj", ("layers", 3, "experts.7.up_proj")),
        ("h.11", ("h", 11, "")),
        ("lm_head", ("", None, "lm_head")),
    ],
)
def test_a_name_is_split_at_its_first_number(name: str, parts: tuple[str, int | None, str]):
    assert split_block(name) == parts


UNSLOTH = (
    r"(?:.*?(?:language|text).*?(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense).*?(?:k_proj|v_proj|q_proj|"
    r"out_proj|fc1|fc2|o_proj|gate_proj|up_proj|down_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|attention|"
    r"attn|mlp|feed_forward|ffn|dense)\.(?:(?:k_proj|v_proj|q_proj|out_proj|o_proj|gate_proj|up_proj|down_proj)))"
)
"""What Unsloth writes to `target_modules` for vision models."""
EVIL = [r"([a-z._0-9]+)+!", r"(.?){40}.{40}!", r"((((.*)*)*)*)*!", r"(?:\w|\.|[a-z])*\d!"]


def test_an_expression_with_many_ways_gives_the_answers_of_re():
    matches = compile_pattern(UNSLOTH)
    names = [f"model.language_model.layers.17.{layer}" for layer in ("self_attn.q_proj", "norm", "mlp.act")]
    names += ["model.layers.7.mlp.down_proj", "model.vision.layers.7.fc1", "model.layers.7.norm", "lm_head"]
    assert [matches(name) for name in names] == [re.fullmatch(UNSLOTH, name) is not None for name in names]
    assert {matches(name) for name in names} == {True, False}


SETTINGS: dict[str, Callable[[str], Any]] = {
    "target_modules": lambda text: LoraConfig(target_modules=text),
    "exclude_modules": lambda text: LoraConfig(target_modules=["c_attn"], exclude_modules=text),
    "rank_pattern": lambda text: LoraConfig(rank_pattern={text: 4}),
    "alpha_pattern": lambda text: LoraConfig(alpha_pattern={text: 4}),
    "layers_pattern": lambda text: LoraConfig(target_modules=["c_attn"], layers_to_transform=[1], layers_pattern=text),
    "ia3 target_modules": lambda text: IA3Config(target_modules=text),
    "ia3 feedforward_modules": lambda text: IA3Config(feedforward_modules=text),
    "select": lambda text: SelectiveConfig(target_parameters=text),
    "norms": lambda text: LNTuningConfig(target_modules=text),
    "norms exclude_modules": lambda text: LNTuningConfig(exclude_modules=text),
    "attention_modules": lambda text: BottleneckConfig(attention_modules=text),
    "feedforward_modules": lambda text: BottleneckConfig(feedforward_modules=text),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_no_expression_of_any_setting_takes_long(setting: str):
    model = tiny_model()
    for text in EVIL:
        with suppress(TsugikiError):  # most match nothing
            graft(model, SETTINGS[setting](text), text)


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("(", "not a regular expression"),
        ("(" * 4000 + ")" * 4000, "not a regular expression"),
        ("a" * 10_001, "10,001 characters"),
        (r"(((a{90}){90}){90}){90}", "repeats too often"),
    ],
)
def test_what_cannot_be_matched_is_refused_with_the_reason(text: str, fact: str):
    with refused(fact) as caught:
        LoraConfig(target_modules=text)
    assert str(caught.value).startswith("target_modules: ")
    assert len(str(caught.value)) < 400


def test_an_expression_that_python_may_change_is_no_warning():
    with warnings.catch_warnings(action="error"):
        assert compile_pattern("[[a-z]b")("[b")
        assert PatternTable("rank_pattern", {"[[a-z]c": 1}).look_up("x.[c", 0) == 1


@pytest.mark.parametrize("compiled", [compile_pattern, compile_search])
def test_what_takes_too_long_is_refused(compiled: Callable[[str], Callable[[str], bool]]):
    matches = compiled("(a|a)+[bc]")
    assert matches("aab")
    with refused("too long for 'aaa"):
        matches("a" * 200)


def test_a_search_finds_a_part_of_a_text():
    found = [
        compile_search(one)(text)
        for one, text in [("^a", "三毛猫"), ("猫", "三毛猫\n"), (r"(?i)YES\b", "yes."), ("", "")]
    ]
    assert found == [False, True, True, True]


TABLES = [
    {"c_attn": 1, "attn.c_attn": 2},
    {"attn.c_attn": 1, "c_attn": 2},
    {r".*\.1\..*": 1, "attn": 2, r"h\.\d\.mlp\.c_.*": 3},
    {"h.0": 1, "^h": 2, "0.attn.c_attn$": 3, "mlp|c_proj": 4},
    {name_pattern("transformer.h.1.mlp.c_fc"): 1, "c_fc": 2, name_pattern("transformer.h.0.mlp.c_fc"): 3},
    {name_pattern("h.0.attn"): 1, "": 2, "(a)(b)?c": 3},
]


@pytest.mark.parametrize("patterns", TABLES, ids=str)
def test_tables_give_the_values_of_peft(patterns: dict[str, int]):
    names = [name for name, _ in tiny_model().named_modules() if name]
    names += ["h.0", "h.0.attn", "enc.h.0.attn", "xc_fc", "a"]
    table = PatternTable("rank_pattern", patterns)
    expected = {name: patterns.get(get_pattern_key(patterns, name), 0) for name in names}
    assert {name: table.look_up(name, 0) for name in names} == expected
    assert len(set(expected.values())) > 1


def test_a_table_holds_any_number_of_names():
    names = [f"model.layers.{i}.mlp.experts.{j}.up_proj" for i in range(50) for j in range(100)]
    table = PatternTable("rank_pattern", {name_pattern(name): i for i, name in enumerate(names)})
    assert [table.look_up(name, -1) for name in names] == list(range(5_000))
    assert table.look_up(f"x.{names[0]}", -1) == -1


def test_a_pattern_of_a_list_of_blocks_counts_as_in_peft():
    name = "encoder.layers.3.blocks.5.attn.q"
    for pattern, index in (("layers", 3), (["blocks", "layers"], 5), (["none", "l.*s"], 3), ("attn", None)):
        config = LoraConfig(target_modules=["q"], layers_to_transform=[0], layers_pattern=pattern)
        assert config.block_index_of(name) == index, pattern
