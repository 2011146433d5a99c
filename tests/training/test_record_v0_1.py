"""Records that version 0.1 wrote, read under today's names."""

from typing import Any

import pytest

from tsugiki.training import translate_record


def config(**fields: Any) -> dict[str, Any]:
    """The translated config of a version 0.1 record with these settings."""
    translated: dict[str, Any] = translate_record({"format": 1, "config": fields})["config"]
    return translated


def test_settings_are_read_under_their_new_names():
    old = {
        "frozen": "int8",
        "arithmetic": None,
        "stored": "float16",
        "own_text": "own.txt",
        "adapter": {"a": 1},
        "seed": 3,
    }
    assert config(**old) == {
        "base_dtype": "int8",
        "compute_dtype": None,
        "save_dtype": "fp16",
        "retention_data": "own.txt",
        "method_config": {"a": 1},
        "seed": 3,
        "validation": "none",
    }


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"warmup_steps": 0.0}, {"warmup_ratio": 0.0}),
        ({"warmup_steps": 0.25}, {"warmup_ratio": 0.25}),
        ({"warmup_steps": 3.0}, {"warmup_steps": 3}),
        ({"decay_steps": None}, {}),
        ({"decay_steps": 0.5}, {"decay_ratio": 0.5}),
        ({"decay_steps": 7.0}, {"decay_steps": 7}),
    ],
)
def test_a_length_below_one_was_a_share_of_all_steps(old: dict[str, Any], new: dict[str, Any]):
    assert config(**old) == {**new, "validation": "none"}


def test_the_rest_of_a_record_is_read_under_its_new_names():
    old = {"format": 1, "choices": {"frozen": "bf16", "steps": 4}, "own_evaluations": [{"step": 0}], "samples": []}
    assert translate_record(old) == {
        "resolved_settings": {"base_dtype": "bf16", "steps": 4},
        "retention_evaluations": [{"step": 0}],
        "samples": [],
    }


@pytest.mark.parametrize("value", [None, "x", [], {}, float("inf"), float("nan")])
def test_values_of_other_types_are_left_to_the_validation(value: Any):
    found = config(save_dtype=value, warmup_steps=value)
    assert found.get("save_dtype") is value
    assert found.get("warmup_ratio") is value
    data = translate_record({"data": {"document_masking": value}})["data"]
    assert data == {"document_masking": value}
