"""A pass through a copy of a model that has no weights."""

import pytest
import torch
from torch import nn

from tests.tiny import CONFIGS, tiny_model
from tsugiki.lora import run, weightless_copy
from tsugiki.lora.weightless import _ShapesOnly


@pytest.mark.parametrize("kind", CONFIGS)
def test_results_have_the_shapes_of_the_model(kind: str):
    model = tiny_model(kind)
    logits = run(weightless_copy(type(model), model.config)).logits
    assert logits.shape == model(input_ids=torch.zeros(1, logits.shape[1], dtype=torch.long)).logits.shape


def test_large_results_take_no_memory_and_gradients_are_recorded():
    weight = nn.Parameter(torch.zeros(()).expand(100_000, 100_000))
    with _ShapesOnly():
        x = torch.zeros(3, 100_000, requires_grad=True)
        y = nn.functional.silu(x @ weight).add_(1)
    assert y.shape == (3, 100_000)
    assert y.untyped_storage().nbytes() == 4
    assert y.grad_fn is not None


def test_small_results_and_integers_are_computed():
    with _ShapesOnly():
        scores = torch.tensor([[1.0, 3.0, 2.0]])
        assert scores.topk(2).indices.tolist() == [[1, 2]]
        large = torch.arange(100_000)
        assert int(large.sum()) == 4_999_950_000
        assert (torch.zeros(100_000) == 0).sum() == 100_000
