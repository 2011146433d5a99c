"""What a base predicts on a sample of the training rows."""

import math
from typing import Any

import pytest
import torch

from tests.runs import uneven_blocks
from tests.tiny import tiny_model
from tsugiki.model import IGNORE_INDEX
from tsugiki.training.choose.output_head import predict_sample


def model_with(token: int, nats: float) -> Any:
    """A model in which a token has this loss, and all others have the same logit."""
    model = tiny_model("gpt2", vocab_size=257)
    model.lm_head = torch.nn.Linear(model.config.n_embd, 257)
    torch.nn.init.zeros_(model.lm_head.weight)
    torch.nn.init.zeros_(model.lm_head.bias)
    with torch.no_grad():
        model.lm_head.bias[token] = math.log(256) - math.log(math.expm1(nats))
    return model.eval()


@pytest.mark.parametrize(("nats", "is_unlikely"), [(12.9, False), (13.1, True)])
def test_a_token_is_unlikely_if_its_loss_is_above_13_nats(nats: float, is_unlikely: bool):
    blocks = uneven_blocks()
    sample = [blocks[row]["labels"][1:] for row in range(0, 16, 2)]
    targets = torch.cat([labels[labels != IGNORE_INDEX] for labels in sample])
    token = int(targets.mode().values)
    found = predict_sample(model_with(token, nats), blocks)
    assert found.unlikely_share == pytest.approx(float((targets == token).float().mean()) if is_unlikely else 0.0)


def test_probabilities_are_those_of_the_model_in_the_mean():
    found = predict_sample(model_with(65, 2.0), uneven_blocks()).mean_probabilities
    assert found.sum() == pytest.approx(1, rel=1e-5)
    assert found[65] == pytest.approx(math.exp(-2), rel=1e-4)
    assert found[66] == pytest.approx((1 - math.exp(-2)) / 256, rel=1e-4)
