"""The pair of factors: the update that they stand for."""

import copy

import torch
from torch import nn

from tsugiki.lora import LowRank, add_magnitude, init_pissa_


def test_what_is_kept_without_being_trained_is_a_parameter_and_no_buffer():
    torch.manual_seed(0)
    weight = torch.randn(4, 5)
    pair = LowRank(torch.empty(2, 5), torch.empty(4, 2), 0.7, 0.0)
    init_pissa_(pair, weight, "pissa")
    add_magnitude(pair, weight)
    assert not list(pair.buffers())
    assert {name: p.requires_grad for name, p in pair.named_parameters()} == {
        "A": True, "B": True, "magnitude": True, "norms": False, "A0": False, "B0": False
    }  # fmt: skip
    other = copy.deepcopy(pair)
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    assert not other.load_state_dict(pair.state_dict()).missing_keys
    assert all(torch.equal(p, getattr(pair, name)) for name, p in other.named_parameters())
