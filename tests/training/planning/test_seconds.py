"""The time of a step."""

from pathlib import Path

import pytest
import torch

from tests.runs import run_config
from tests.tiny import tiny_model
from tsugiki.base import load_meta_model
from tsugiki.fast import loss_of_hidden_states, use_fast_paths
from tsugiki.model import IGNORE_INDEX
from tsugiki.training import Measured, Need, measure, sample_model
from tsugiki.training.planning.plan import _step_seconds


def test_a_step_is_its_blocks_and_its_loss():
    measured = Measured(kept=0, input=0, transient=0, forward=1.0, backward=2.0, loss=0.5)
    need = Need(0, 0, 4, 0, 0, 0, 0, 2, measured)
    assert _step_seconds(need, 1, 2, 0) == 4 * 3 + 0.5
    assert _step_seconds(need, 1, 2, 3) == 4 * 3 + 3 * 1 + 0.5
    assert _step_seconds(need, 1, 5, 0) == 3 * (4 * 3 + 0.5), "two threads compute five rows in three rounds"


def test_the_time_of_the_loss_grows_with_the_vocabulary(tmp_path: Path):
    config = run_config(tmp_path, base_dtype="fp32")
    shapes = load_meta_model(config.model).config
    small, large = (
        measure(sample_model(shapes, 1, "fp32"), config, torch.device("cpu"), 1, 32, 1, words, timed=True).loss
        for words in (shapes.vocab_size, 1000 * shapes.vocab_size)
    )
    assert 0 < small < large


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "cohere"])  # Cohere scales its logits
def test_the_loss_of_hidden_states_is_the_models(kind: str):
    model = tiny_model(kind)
    ids = torch.arange(24).view(2, 12)
    labels = ids.clone()
    labels[:, :3] = IGNORE_INDEX
    expected = model(input_ids=ids, labels=labels, num_items_in_batch=1).loss
    use_fast_paths(model)
    hidden = model.base_model(input_ids=ids).last_hidden_state[:, :-1]
    found = loss_of_hidden_states(model, hidden, labels[:, 1:])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
