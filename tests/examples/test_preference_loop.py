"""The loop of examples/preference_loop.py begins at the reference, learns the choice, and keeps the text."""

import math
from pathlib import Path

import preference_loop
import pytest

from tests.tiny import save_tiny
from tsugiki import disable_adapter, load_adapter
from tsugiki.base import load_model


@pytest.fixture
def pairs(tmp_path: Path) -> str:
    path = tmp_path / "pairs.csv"
    path.write_text(preference_loop.PAIRS.replace("/", "\n"), encoding="utf-8")
    return str(path)


def test_the_loop_begins_at_the_reference_and_learns(pairs: str, tmp_path: Path):
    out = tmp_path / "adapter"
    settings = preference_loop.Settings(data=pairs, out=str(out), epochs=3)
    steps, (before, after) = preference_loop.train(settings)
    for start in (steps[0], before):
        assert start.margin == 0, "the reference has the bits of the model before the first step"
        assert start.dpo == pytest.approx(math.log(2), abs=1e-7)
    assert after.dpo < 0.6
    assert after.margin > 1
    assert after.accuracy == 1
    assert after.likelihood < before.likelihood, "the chosen answers have become more likely, too"
    model = load_adapter(load_model("embedded"), out)
    _rows, held_out = preference_loop.prepare_data(settings)
    reference = preference_loop.references(model, held_out)
    again = preference_loop.evaluate(model, held_out, reference, settings)
    assert again.margin == pytest.approx(after.margin, rel=1e-5)
    with disable_adapter(model):
        assert preference_loop.evaluate(model, held_out, reference, settings).margin == 0


def test_without_the_likelihood_the_chosen_answers_are_lost(pairs: str, tmp_path: Path):
    model = save_tiny(tmp_path / "model", "llama", max_position_embeddings=256)
    fields = {"data": pairs, "model": model, "epochs": 8, "learning_rate": 1e-2, "block_size": 256}

    def likelihood(weight: float) -> float:
        settings = preference_loop.Settings(out=str(tmp_path / "out"), likelihood=weight, **fields)
        _steps, (_before, after) = preference_loop.train(settings)
        assert after.dpo < math.log(2)
        return after.likelihood

    assert likelihood(1.0) < likelihood(0.0)
