"""How much text a model can process at once."""

from typing import Any

import pytest
import torch

from tests.tiny import tiny_model
from tests.tiny_types import tiny_of
from tsugiki import disable_adapter, graft, ungraft
from tsugiki.methods import METHODS
from tsugiki.model import (
    PROMPT_ATTRIBUTE,
    context_length,
    decoder_of,
    max_positions,
    rope_depends_on_length,
    virtual_tokens,
)


@pytest.mark.parametrize(("kind", "positions", "length"), [("gpt2", 64, 64), ("llama", 64, 64), ("bloom", None, 2048)])
def test_context_is_the_number_of_positions(kind: str, positions: int | None, length: int):
    model = tiny_model(kind)
    assert (max_positions(model), virtual_tokens(model), context_length(model)) == (positions, 0, length)


@pytest.mark.parametrize("model_type", ["gpt2", "opt", "whisper", "mpt", "roberta", "data2vec-text", "prophetnet"])
def test_no_more_tokens_fit_into_the_positions(model_type: str):
    model = tiny_of(model_type)
    longest = max_positions(model)
    assert longest is not None
    with torch.no_grad():
        model(input_ids=torch.full((1, longest), 30))
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, longest + 1), 30))


@pytest.mark.parametrize("method", ["prompt-tuning", "prefix-tuning"])
def test_an_attached_soft_prompt_takes_up_context(method: str):
    model = tiny_model("llama")
    graft(model, METHODS[method].configure({"num_virtual_tokens": 5}))
    assert (virtual_tokens(model), context_length(model)) == (5, 59)
    with disable_adapter(model):
        assert (virtual_tokens(model), context_length(model)) == (0, 64)
    ungraft(model)
    assert context_length(model) == 64
    assert not hasattr(decoder_of(model), PROMPT_ATTRIBUTE)


_LONG: dict[str, Any] = {"rope_type": "longrope", "original_max_position_embeddings": 12, "factor": 2.0}


_LINEAR, _DYNAMIC = ({"rope_type": kind, "factor": 2.0} for kind in ("linear", "dynamic"))


@pytest.mark.parametrize(
    ("kind", "rope", "depends"),
    [
        ("gpt2", None, False),
        ("llama", None, False),
        ("llama", _DYNAMIC, True),
        ("llama", {**_LONG, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}, True),
        ("llama", {**_LONG, "short_factor": [2.0] * 4, "long_factor": [2.0] * 4}, False),
        ("gemma3_text", {"sliding_attention": {"rope_type": "default"}, "full_attention": _LINEAR}, False),
        ("gemma3_text", {"sliding_attention": {"rope_type": "default"}, "full_attention": _DYNAMIC}, True),
    ],
)
def test_rotary_frequencies_that_depend_on_the_length(kind: str, rope: dict[str, Any] | None, depends: bool):
    model = tiny_model(kind)
    if rope is not None:
        model.config.rope_parameters = rope
    assert rope_depends_on_length(model) is depends
