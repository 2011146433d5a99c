"""Adapters with default targets on model types of every kind; `python -m tests.models.walk FILE` runs all of them."""

import pytest

from tests.models.life import live, train_by_command
from tests.tiny_types import lively_model

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


@pytest.mark.parametrize(
    "model_type",
    [
        "whisper",  # names its positions in its own way
        pytest.param("roberta", marks=pytest.mark.slow),  # has rows in its table that are no positions
        pytest.param("apertus1p5_text", marks=pytest.mark.slow),  # its loss reads the width of the head
        pytest.param("inkling_text", marks=pytest.mark.slow),  # its config does not say whether weights are tied
    ],
)
def test_a_run_on_a_text_that_is_longer_than_the_positions(model_type: str):
    train_by_command(lively_model(model_type))
