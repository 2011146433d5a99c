"""How much text a model can process at once."""

import pytest

from tests.tiny import tiny_model
from tsugiki import disable_adapter, graft, ungraft
from tsugiki.base.context import PROMPT_ATTRIBUTE, context_length, decoder_of, max_positions, virtual_tokens
from tsugiki.methods.table import METHODS


@pytest.mark.parametrize(("kind", "positions", "length"), [("gpt2", 64, 64), ("llama", 64, 64), ("bloom", None, 2048)])
def test_context_is_the_number_of_positions(kind: str, positions: int | None, length: int):
    model = tiny_model(kind)
    assert (max_positions(model), virtual_tokens(model), context_length(model)) == (positions, 0, length)


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


def test_other_adapters_leave_the_context_alone():
    model = tiny_model("llama")
    graft(model, METHODS["houlsby"].configure({}))
    assert context_length(model) == 64
