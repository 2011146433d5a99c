"""Selections of names, and blocks in names."""

from typing import Any

import pytest

from tsugiki import TsugikiError
from tsugiki.methods import LNTuningConfig
from tsugiki.model import matches, shortest_endings, split_block


@pytest.mark.parametrize(
    ("wanted", "selected"),
    [
        (["c_attn"], True),
        (["h.0.attn.c_attn"], True),
        (["attn"], False),
        (["attn.c_attn", "other"], True),
        ([], False),
        (r".*attn", True),
        (r"h\.1\..*", False),
        ("c_attn", False),
    ],
)
def test_a_list_holds_endings_and_a_string_a_pattern_for_the_whole_name(wanted: object, selected: bool):
    assert matches("h.0.attn.c_attn", wanted) is selected  # type: ignore[arg-type]


@pytest.mark.parametrize("value", ["(", 3, ["a", 1], {"a": 1}])
def test_what_selects_no_names_is_refused_with_its_setting(value: Any):
    with pytest.raises(TsugikiError, match="target_modules"):
        LNTuningConfig(target_modules=value)


def test_none_lists_and_patterns_select_names():
    for value in (None, [], ["a", "b"], ("a",), ".*"):
        LNTuningConfig(target_modules=value)


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
        ("0.weight", ("", 0, "weight")),
        ("lm_head", ("", None, "lm_head")),
        ("conv1.fc2", ("", None, "conv1.fc2")),
    ],
)
def test_a_name_is_split_at_its_first_number(name: str, parts: tuple[str, int | None, str]):
    assert split_block(name) == parts
