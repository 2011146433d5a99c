"""Regular expressions from settings: the answers are those of `re` and PEFT, and no expression takes long."""

import random
import re
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from peft.utils.other import get_pattern_key

from tests.model.test_automaton import random_expression
from tests.tiny import tiny_model
from tsugiki import LoraConfig, TsugikiError, graft
from tsugiki.methods import BottleneckConfig, IA3Config, LNTuningConfig, SelectiveConfig
from tsugiki.model import PatternTable, automaton, compile_pattern, name_pattern, patterns

UNSLOTH = (
    r"(?:.*?(?:language|text).*?(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense).*?(?:k_proj|v_proj|q_proj|"
    r"out_proj|fc1|fc2|o_proj|gate_proj|up_proj|down_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|attention|"
    r"attn|mlp|feed_forward|ffn|dense)\.(?:(?:k_proj|v_proj|q_proj|out_proj|o_proj|gate_proj|up_proj|down_proj)))"
)
"""What Unsloth writes to `target_modules` for vision models."""
EVIL = [
    r"([a-z._0-9]+)+!",
    r"(a|a|aa|[a-z._0-9])+!",
    r".*.*.*.*.*.*.*.*!",
    r"(.?){40}.{40}!",
    r"(.*)*!",
    r"((((.*)*)*)*)*!",
    r"(.+.+)+!",
    r"(?:\w|\.|[a-z])*\d!",
]


def test_an_expression_with_many_ways_gives_the_answers_of_re():
    assert automaton.ways(automaton.parse(UNSLOTH), 128, 100_000) > 100_000
    matches = compile_pattern(UNSLOTH)
    names = [
        *(
            f"model.language_model.layers.{i}.{layer}"
            for i in (0, 17)
            for layer in ("self_attn.q_proj", "norm", "mlp.act")
        ),
        *("model.layers.7.mlp.down_proj", "model.vision.layers.7.fc1", "model.layers.7.norm", "lm_head"),
    ]
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
    begin = time.perf_counter()
    for text in EVIL:
        with suppress(TsugikiError):  # most match nothing
            graft(model, SETTINGS[setting](text), text)
    assert time.perf_counter() - begin < 20  # each would take years


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("(", "not a regular expression"),
        ("(" * 4000 + ")" * 4000, "not a regular expression"),
        ("a{4294967296}", "not a regular expression"),
        ("a" * 10_001, "10,001 characters"),
        (r"(?!(a+)+b).*", "lookahead"),
        (r"(a+)+\1", "a reference to a group"),
        (r"(?i)(a+)+", "flags"),
        (r"(a*)*(((a{90}){90}){90}){90}", "repetitions are too long"),
    ],
)
def test_what_cannot_be_matched_is_refused_with_the_reason(text: str, fact: str):
    with pytest.raises(TsugikiError, match=fact) as caught:
        LoraConfig(target_modules=text)
    assert str(caught.value).startswith("target_modules: ")
    assert len(str(caught.value)) < 400


ORDINARY = [r".*\.mlp\..*_proj", r"h\.\d+\.attn", r"(q|k|v)_proj", r"model\.layers\.(0|1|2)\..*", r"^(?!.*lm_head).*"]


def test_without_the_parser_of_re_ordinary_expressions_match_and_others_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(patterns, "automaton", None)
    matching = compile_pattern.__wrapped__
    for text in ORDINARY:
        for name in ("model.layers.0.mlp.up_proj", "h.12.attn", "q_proj", "lm_head"):
            assert matching(text)(name) == (re.fullmatch(text, name) is not None), text
    for text in [*EVIL, UNSLOTH]:
        with pytest.raises(TsugikiError, match="too many ways to match, and this version of Python"):
            matching(text)
    assert PatternTable("rank_pattern", {r".*c_attn": 4}).look_up("h.0.c_attn", 1) == 4


def test_ways_counted_by_signs_are_never_fewer():
    draw = random.Random(1)
    for text in [*ORDINARY, *EVIL, UNSLOTH, *(random_expression(draw, 4) for _ in range(1000))]:
        counted = automaton.ways(automaton.parse(text), 128, 100_000)
        assert patterns._ways_by_signs(text) >= counted, text


def test_an_expression_that_python_may_change_is_no_warning():
    with warnings.catch_warnings(action="error"):
        assert compile_pattern("[[a-z]b")("[b")
        assert PatternTable("rank_pattern", {"[[a-z]c": 1}).look_up("x.[c", 0) == 1


def test_a_name_that_takes_too_many_steps_is_refused():
    matches = compile_pattern("(?:" + "|".join(f"(.*{i}.*)+" for i in range(100)) + ")+!")
    assert not matches("0")
    with pytest.raises(TsugikiError, match="too many steps for 'aaa"):
        matches("a" * 200)
    with pytest.raises(TsugikiError, match="more than 256 characters"):
        compile_pattern("a")("a" * 257)


TABLES = [
    {"c_attn": 1, "attn.c_attn": 2},
    {"attn.c_attn": 1, "c_attn": 2},
    {r".*\.1\..*": 1, "attn": 2, r"h\.\d\.mlp\.c_.*": 3},
    {"^transformer.h.0.attn.c_attn": 1, "c_.": 2},
    {"h.0": 1, "^h": 2, "0.attn.c_attn$": 3, "mlp|c_proj": 4},
    {name_pattern("transformer.h.1.mlp.c_fc"): 1, "c_fc": 2, name_pattern("transformer.h.0.mlp.c_fc"): 3},
    {"c_fc": 1, name_pattern("transformer.h.0.mlp.c_fc"): 2},
    {name_pattern("h.0.attn"): 1, "": 2, "(a)(b)?c": 3},
]


@pytest.mark.parametrize("patterns", TABLES, ids=str)
def test_tables_give_the_values_of_peft(patterns: dict[str, int]):
    names = [name for name, _ in tiny_model().named_modules() if name] + [
        "h.0",
        "h.0.attn",
        "enc.h.0.attn",
        "xc_fc",
        "a",
    ]
    table = PatternTable("rank_pattern", patterns)
    expected = {name: patterns.get(get_pattern_key(patterns, name), 0) for name in names}
    assert {name: table.look_up(name, 0) for name in names} == expected
    assert len(set(expected.values())) > 1


def test_a_table_holds_any_number_of_names_but_not_of_expressions():
    names = [f"model.layers.{i}.mlp.experts.{j}.up_proj" for i in range(50) for j in range(100)]
    table = PatternTable("rank_pattern", {name_pattern(name): i for i, name in enumerate(names)})
    assert [table.look_up(name, -1) for name in names] == list(range(5_000))
    assert table.look_up(f"x.{names[0]}", -1) == -1
    PatternTable("rank_pattern", dict.fromkeys(names[:900], 1))
    for many in (names, [f".*{name}" for name in names[:500]], [rf".*{name}.*" for name in names[:10]]):
        with pytest.raises(TsugikiError, match=rf"rank_pattern has too many ways.* {len(many):,} regular expressions"):
            PatternTable("rank_pattern", dict.fromkeys(many, 1))


def test_a_pattern_of_a_list_of_blocks_counts_as_in_peft():
    name = "encoder.layers.3.blocks.5.attn.q"
    for pattern, index in [
        ("layers", 3),
        ("blocks", 5),
        (["blocks", "layers"], 5),
        (["none", "l.*s"], 3),
        ("attn", None),
    ]:
        config = LoraConfig(target_modules=["q"], layers_to_transform=[0], layers_pattern=pattern)
        assert config.block_index_of(name) == index, pattern
