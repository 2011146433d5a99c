"""One wrapped layer, in both layouts of the weight."""

import torch
from linear import LinearWithLoRA, features
from torch import nn
from transformers.pytorch_utils import Conv1D


def test_both_layouts_compute_the_same_and_so_do_the_plain_layers_that_they_are_merged_into():
    torch.manual_seed(0)
    linear, conv1d, x = nn.Linear(6, 10), Conv1D(10, 6), torch.randn(3, 6)
    with torch.no_grad():
        conv1d.weight.copy_(linear.weight.T)
        conv1d.bias.copy_(linear.bias.normal_())
    assert features(linear) == features(conv1d) == (6, 10)
    one, other = (LinearWithLoRA(base, rank=2, alpha=4) for base in (linear, conv1d))
    nn.init.normal_(one.lora.B)
    other.lora.load_state_dict(one.lora.state_dict())
    torch.testing.assert_close(one(x), other(x))
    for wrapped, base in ((one, linear), (other, conv1d)):
        before, merged = base.weight.clone(), wrapped.merged()
        assert type(merged) is type(base)
        torch.testing.assert_close(merged(x), one(x))
        assert torch.equal(base.weight, before), "the pretrained weight stays"
