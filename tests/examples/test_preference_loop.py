"""The loop of examples/preference_loop.py begins at the reference, learns the choice, and keeps the text."""

import math
from pathlib import Path

import preference_loop
import pytest

from tsugiki import disable_adapter, load_adapter
from tsugiki.base import load_model


def test_the_loop_begins_at_the_reference_and_learns(tmp_path: Path):
    pairs, out = tmp_path / "pairs.csv", tmp_path / "adapter"
    pairs.write_text(preference_loop.PAIRS.replace("/", "\n"), encoding="utf-8")
    settings = preference_loop.Settings(data=str(pairs), out=str(out), epochs=3)
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
