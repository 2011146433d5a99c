"""A vision model: a ViT of transformers."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

from tests.errors import refused
from tests.lifecycle import assert_lifecycle
from tests.tiny import seeded
from tsugiki import LoraConfig, active_adapter, graft
from tsugiki.lora import trainable_parameters
from tsugiki.methods import METHODS

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def vit() -> Any:
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        image_size=16,
        patch_size=4,
        num_labels=5,
        hidden_dropout_prob=0.1,
    )
    torch.manual_seed(0)
    return transformers.ViTForImageClassification(config).eval()


LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"]


@pytest.mark.parametrize("name", ["lora", "dora", "lora-fa", "pissa", "orthogonal"])
def test_the_life_of_an_adapter_whose_training_lowers_the_loss(name: str, tmp_path: Path):
    convolution = [] if name in ("pissa", "orthogonal") else ["projection"]
    fields = {"r": 4, "target_modules": [*LINEAR, *convolution], "modules_to_save": ["classifier"]}
    x = torch.randn(6, 3, 16, 16, generator=seeded(1))

    def outputs(model: Any) -> Tensor:
        logits: Tensor = model(x).logits
        return logits

    def train(model: Any) -> None:
        optimizer = torch.optim.AdamW(trainable_parameters(model).values(), lr=1e-2)
        losses = []
        for _ in range(25):
            loss = F.cross_entropy(outputs(model.train()), torch.arange(len(x)) % 5)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        assert losses[-1] < 0.8 * losses[0]

    start = 1e-4 if name == "orthogonal" else 0.0
    assert_lifecycle(vit, METHODS[name].configure(fields), tmp_path, outputs, train, start)


@pytest.mark.parametrize(("targets", "found"), [(None, LINEAR), ("all-linear", [*LINEAR, "classifier"])])
def test_which_layers_of_a_vit_are_chosen(targets: Any, found: list[str]):
    pairs = active_adapter(graft(vit(), LoraConfig(target_modules=targets))).pairs
    assert {path.rpartition(".")[2] for path in pairs} == set(found)


def test_layers_that_multihead_attention_does_not_call_are_refused():
    model = nn.Sequential(nn.MultiheadAttention(8, 2), nn.Linear(8, 8))
    with refused(r"0\.out_proj.*NonDynamicallyQuantizableLinear"):
        graft(model, LoraConfig(target_modules=["out_proj"]))
    assert set(active_adapter(graft(model, LoraConfig(target_modules="all-linear"))).pairs) == {"1"}
