"""Invalid settings raise an error that names the field."""

import copy
import dataclasses
import math
import pickle

import pytest

from tsugiki import LoraConfig, TsugikiError


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"r": 0}, "r is 0"),
        ({"r": -1}, "r is -1"),
        ({"r": 2.5}, "r is 2.5"),
        ({"r": True}, "r is True"),
        ({"lora_alpha": math.nan}, "lora_alpha is nan"),
        ({"lora_alpha": 0}, "lora_alpha is 0"),
        ({"lora_alpha": math.inf}, "lora_alpha is inf"),
        ({"lora_alpha": 1e24}, "lora_alpha is 1e+24; alpha is a number above 0 and at most 1,000,000"),
        ({"alpha_pattern": {"c_fc": 1e7}}, "alpha_pattern['c_fc'] is 10000000.0"),
        ({"lora_dropout": 1.0}, "lora_dropout is 1.0"),
        ({"lora_dropout": math.nan}, "lora_dropout is nan"),
        ({"bias": "some"}, "bias is 'some'"),
        ({"rank_pattern": {"c_fc": 0}}, "rank_pattern['c_fc'] is 0"),
        ({"target_modules": "("}, "'(' is not a regular expression"),
        ({"target_modules": ".*", "layers_to_transform": [1]}, "layers_to_transform"),
        ({"init_lora_weights": "olora"}, "init_lora_weights is 'olora'"),
    ],
)
def test_an_invalid_value_is_refused(fields: dict[str, object], named: str):
    with pytest.raises(TsugikiError) as caught:
        LoraConfig(**fields)  # type: ignore[arg-type]
    assert named in str(caught.value)


def test_a_config_with_patterns_is_copied_and_pickled():
    config = LoraConfig(rank_pattern={"c_.*": 2}, alpha_pattern={"x.*y.*": 3}, layers_pattern="h")
    for twin in (copy.deepcopy(config), pickle.loads(pickle.dumps(config)), dataclasses.replace(config)):
        assert twin == config
        assert dataclasses.asdict(twin) == dataclasses.asdict(config)
        assert [twin.rank_of(name) for name in ("c_fc", "fc")] == [2, 8]


def test_scaling_follows_the_patterns_and_rslora():
    config = LoraConfig(r=4, lora_alpha=8, rank_pattern={"c_fc": 2}, alpha_pattern={r"h\.1\.mlp\.c_fc": 16})
    assert config.scaling_of("h.0.attn.c_attn") == 2
    assert config.scaling_of("h.0.mlp.c_fc") == 4
    assert config.scaling_of("h.1.mlp.c_fc") == 8
    assert config.scaling_of("h.1.mlp.xc_fc") == 2, "a pattern matches whole names, not the tail of one"
    assert LoraConfig(r=4, lora_alpha=8, use_rslora=True).scaling_of("x") == 4
