"""Replacing modules and parameters, and undoing it."""

import torch
from torch import nn

from tsugiki.model import (
    Undo,
    cast_parameters,
    replace_module,
    replace_parameter,
    undo_all,
)


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))


def test_replacements_are_undone_in_reverse_order():
    net = model()
    first, weight, mean, other = net[0], net[0].weight, net[1].running_mean, nn.Linear(2, 2)
    undo: list[Undo] = []
    replace_parameter(net, "0.weight", nn.Parameter(torch.ones(2, 2)), undo)
    replace_parameter(net, "1.running_mean", torch.ones(2), undo)  # a buffer
    replace_module(net, "0", other, undo)
    assert net[0] is other
    assert torch.equal(net[1].running_mean, torch.ones(2))
    undo_all(undo)
    assert not undo
    assert net[0] is first
    assert net[0].weight is weight
    assert net[1].running_mean is mean


def test_a_replaced_module_gets_the_mode_and_the_device_of_the_old_one():
    net = model().eval()
    undo: list[Undo] = []
    replace_module(net, "0", nn.Linear(2, 2).train(), undo)
    assert not net[0].training
    net.train().to("meta")
    undo_all(undo)
    assert net[0].training
    assert {p.device.type for p in net.parameters()} == {"meta"}
    replace_module(net, "0", nn.Linear(2, 2), [])
    assert {p.device.type for p in net.parameters()} == {"meta"}


def test_cast_parameters_compute_in_the_dtype_and_learn_in_their_own():
    layer = nn.Linear(2, 2)
    undo: list[Undo] = []
    cast_parameters(layer, {"weight": torch.bfloat16, "bias": torch.bfloat16}, undo)
    y = layer(torch.ones(1, 2, dtype=torch.bfloat16))
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32
    undo_all(undo)
    assert "forward" not in vars(layer)
