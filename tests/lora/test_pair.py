"""The pair of factors: the update that they stand for."""

import copy

import torch
from torch import nn

from tsugiki.lora import LowRank, add_magnitude, init_pissa_
from tsugiki.model import oriented


def test_a_pissa_pair_starts_at_exactly_zero_and_moves_by_the_difference():
    torch.manual_seed(0)
    pair = LowRank(torch.empty(2, 5), torch.empty(4, 2), 0.7, 0.0)
    init_pissa_(pair, oriented(nn.Linear(5, 4)), "pissa")
    assert not pair.delta().any()
    assert pair.A0 is not None
    assert pair.B0 is not None
    with torch.no_grad():
        pair.A.add_(torch.randn(2, 5))
        pair.B.add_(torch.randn(4, 2))
    torch.testing.assert_close(pair.delta(), 0.7 * (pair.B @ pair.A - pair.B0 @ pair.A0))


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
