"""Invalid settings raise an error that names the field."""

import copy
import dataclasses
import math
import pickle

import pytest

from tests.errors import refused
from tsugiki import LoraConfig


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("r", 0),
        ("lora_alpha", math.nan),
        ("alpha_pattern", {"c_fc": 1e7}),
        ("lora_dropout", 1.0),
        ("bias", "some"),
        ("rank_pattern", {"c_fc": 0}),
        ("target_modules", "("),
        ("target_parameters", "experts"),
        ("layers_to_transform", "all"),
        ("trainable_token_indices", [1, 1]),
        ("trainable_token_indices", {"lm_head": 5}),
        ("init_lora_weights", "pissa_niter_"),
    ],
)
def test_an_invalid_value_is_refused(field: str, value: object):
    with refused(field):
        LoraConfig(**{field: value})  # type: ignore[arg-type]


def test_an_unknown_setting_is_named_with_the_nearest_one():
    with refused("rank: unknown setting; did you mean 'r'"):
        LoraConfig(rank=4)  # type: ignore[call-arg]
    with refused(r"foo: no such setting.* lora_alpha,"):
        LoraConfig(foo=1)  # type: ignore[call-arg]


def test_values_that_exclude_each_other_are_refused():
    with refused("layers_to_transform"):
        LoraConfig(target_modules=".*", layers_to_transform=[1])
    for odd in ({"r": 3}, {"rank_pattern": {"a": 3}}):
        with refused("orthogonal.* even ranks, and one is 3"):
            LoraConfig(init_lora_weights="orthogonal", **odd)  # type: ignore[arg-type]


def test_a_config_with_patterns_is_copied_and_pickled():
    config = LoraConfig(lora_alpha=32, rank_pattern={"c_.*": 2}, layers_to_transform=range(2), layers_pattern="h")
    assert isinstance(config.lora_alpha, int), "the file has 32, not 32.0"
    assert config.layers_to_transform == range(2)
    for twin in (copy.deepcopy(config), pickle.loads(pickle.dumps(config)), dataclasses.replace(config)):
        assert twin == config
        assert dataclasses.asdict(twin) == dataclasses.asdict(config)
        assert [twin.rank_of(name) for name in ("c_fc", "fc")] == [2, 8]
