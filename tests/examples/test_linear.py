"""One wrapped layer, in both layouts of the weight."""

import pytest
import torch
from linear import LinearWithLoRA, features
from torch import nn
from transformers.pytorch_utils import Conv1D

KINDS = ["Linear", "Conv1D"]


def layer_of(kind: str, out_features: int = 10) -> nn.Module:
    torch.manual_seed(0)
    layer = nn.Linear(6, out_features) if kind == "Linear" else Conv1D(out_features, 6)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    return layer


def test_both_layouts_compute_the_same():
    linear, conv1d = layer_of("Linear"), layer_of("Conv1D")
    with torch.no_grad():
        conv1d.weight.copy_(linear.weight.T)
        conv1d.bias.copy_(linear.bias)
    assert features(linear) == features(conv1d) == (6, 10)
    one, other = LinearWithLoRA(linear, rank=2, alpha=4), LinearWithLoRA(conv1d, rank=2, alpha=4)
    nn.init.normal_(one.lora.B)
    other.lora.load_state_dict(one.lora.state_dict())
    x = torch.randn(3, 6)
    torch.testing.assert_close(one(x), other(x))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("out_features", [10, 6])
def test_merged_is_a_plain_layer_of_the_same_size_that_gives_the_same(kind: str, out_features: int):
    base = layer_of(kind, out_features)
    wrapped = LinearWithLoRA(base, rank=2, alpha=4)
    nn.init.normal_(wrapped.lora.B)
    before = base.weight.clone()
    merged, x = wrapped.merged(), torch.randn(3, 6)
    assert type(merged) is type(base)
    assert {name: p.shape for name, p in merged.named_parameters()} == {n: p.shape for n, p in base.named_parameters()}
    torch.testing.assert_close(merged(x), wrapped(x))
    assert torch.equal(base.weight, before), "the pretrained weight stays"
