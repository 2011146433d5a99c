"""The time of a step of a model whose output head is its embedding."""

import pytest

from tests.tiny import tiny_model
from tsugiki.train.planning.need import Need
from tsugiki.train.planning.plan import _step_seconds
from tsugiki.train.planning.sample import Measured


@pytest.mark.parametrize("tied", [True, False])
def test_the_head_takes_its_share_of_a_step(tied: bool):
    model = tiny_model("llama", vocab_size=4096, num_hidden_layers=2, tie_word_embeddings=tied)
    in_blocks = sum(weight.numel() for weight in model.model.layers.parameters())
    measured = Measured(kept=0, input=0, transient=0, forward=1.0, backward=2.0)
    need = Need(0, 0, 2, 0, 0, 0, 0, 1, measured)
    of_head = 3 * 2 * model.lm_head.weight.numel() / in_blocks
    assert _step_seconds(need, model, 1, 1, 0) == pytest.approx(2 * 3 + of_head)
