"""Adapters with default targets on model types of every kind; `python -m tests.models.walk FILE` runs all of them."""

import pytest

from tests.models.life import live

ONE_OF_EACH_KIND = [
    ("gpt2", "causal"),  # Conv1D
    ("jetmoe", "causal"),  # a linear router
    ("qwen3_next", "causal"),  # linear attention
    ("mamba2", "causal"),  # a state-space mixer
    ("lfm2", "causal"),  # convolutions
    ("t5", "seq2seq"),
]


@pytest.mark.parametrize(("model_type", "task"), ONE_OF_EACH_KIND)
def test_an_adapter_with_default_targets_lives_on_one_type_of_each_kind(model_type: str, task: str):
    life = live(model_type, task)
    assert not life.failed, life.failed
    assert life.layers
