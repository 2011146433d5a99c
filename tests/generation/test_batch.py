"""How the rows of a model can be batched."""

from contextlib import nullcontext

import pytest
import torch

from tests.errors import refused
from tests.tiny import seeded, tiny_model
from tsugiki.generation import batch, find_batch_mode
from tsugiki.lowbit import quantize


@pytest.mark.parametrize(
    ("quantised", "error", "served"), [(True, 0.08, True), (True, 0.3, False), (False, 0.08, False)]
)
@torch.inference_mode()
def test_a_quantised_model_may_differ_more_between_one_token_and_many(quantised, error, served, monkeypatch):
    model = tiny_model("llama").to(torch.bfloat16).eval()
    if quantised:
        quantize(model)
    exact = batch._two_steps

    def with_error(*arguments):
        logits = exact(*arguments)
        noise = torch.randn(logits.shape, generator=seeded(0), dtype=logits.dtype)
        return logits + error * logits.norm() / noise.norm() * noise

    monkeypatch.setattr(batch, "_two_steps", with_error)
    with nullcontext() if served else refused("computes something else with a cache"):
        assert find_batch_mode(model, several=False) == "alone"
