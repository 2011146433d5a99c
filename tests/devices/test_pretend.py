"""The pretended device computes what the processor does, refuses what accelerators refuse, and counts waits."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.devices.pretend import NAME, PretendedDevice, on_host, pretended_device


def test_results_and_gradients_are_those_of_the_processor(device: PretendedDevice):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 5), nn.GELU(), nn.LayerNorm(5)), torch.randn(3, 4)
    model(x).square().sum().backward()
    expected = {name: p.grad for name, p in model.named_parameters()}
    there = model.to(NAME)
    there.zero_grad()
    there(x.to(NAME)).square().sum().backward()
    for name, p in there.named_parameters():
        assert p.device.type == p.grad.device.type == NAME
        assert torch.equal(on_host(p.grad), expected[name])
    assert not device.waits
    assert device.operations > 10


def test_views_and_operations_in_place(device: PretendedDevice):
    x = torch.zeros(3, 4, device=NAME)
    x[1:, 2].add_(1)
    torch.add(x, 1, out=x)
    assert on_host(x).tolist() == [[1, 1, 1, 1], [1, 1, 2, 1], [1, 1, 2, 1]]
    assert x.sum().item() == 14


@pytest.mark.parametrize(
    "operation",
    [
        lambda x, y: x + y,
        lambda x, y: y @ x,
        lambda x, y: x.mul_(y),
        lambda x, y: torch.cat([x, y]),
        lambda x, y: torch.add(x, x, out=y),
        lambda x, y: F.embedding(y.long(), x),
        lambda x, y: y[x.long()],
    ],
)
def test_a_tensor_of_the_processor_is_refused(operation: Callable[[Tensor, Tensor], Tensor], device: PretendedDevice):
    with pytest.raises(RuntimeError, match="pretend:0"):
        operation(torch.ones(2, 2, device=NAME), torch.ones(2, 2))


def test_numbers_and_indices_of_the_processor_are_taken(device: PretendedDevice):
    x = torch.ones(2, 2, device=NAME)
    assert on_host(x + torch.tensor(2.0)).tolist() == [[3, 3], [3, 3]]
    assert on_host(x[torch.tensor([0])]).tolist() == [[1, 1]]


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: x.double(),
        lambda x: x.to("cpu", torch.float64),
        lambda x: torch.zeros(2, dtype=torch.float64, device=x.device),
        lambda x: x.sum(dtype=torch.float64),
        lambda x: torch.ones(2, dtype=torch.float64).to(x.device),
    ],
)
def test_float64_is_refused(operation: Callable[[Tensor], Tensor], device: PretendedDevice):
    with pytest.raises(TypeError, match="float64"):
        operation(torch.ones(2, device=NAME))


@pytest.mark.parametrize("operation", [torch.linalg.qr, torch.linalg.svd, torch.linalg.eigh, torch.linalg.cholesky])
def test_decompositions_are_refused(operation: Callable[[Tensor], object], device: PretendedDevice):
    with pytest.raises(NotImplementedError, match="no such operation"):
        operation(torch.eye(3, device=NAME))


def test_the_device_has_its_own_generator(device: PretendedDevice):
    torch.manual_seed(1)
    ours, theirs = torch.rand(5, device=NAME), torch.rand(5)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(5), theirs)
    assert torch.equal(on_host(torch.rand(5, device=NAME)), on_host(ours))
    assert not torch.equal(on_host(ours), theirs)


def test_float64_can_be_allowed():
    with pretended_device(float64=True):
        assert torch.ones(2, device=NAME).double().cpu().dtype == torch.float64


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: float(x[0]),
        lambda x: bool((x > 0).all()),
        lambda x: x.cpu(),
        lambda x: torch.empty(3).copy_(x),
        lambda x: torch.equal(x, x),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.masked_select(x > 0),
        lambda x: x.index_put_((x > 0,), torch.zeros((), device=NAME)),
        lambda x: x.unique(),
    ],
)
def test_a_wait_is_counted_with_its_place(operation: Callable[[Tensor], object], device: PretendedDevice):
    x = torch.ones(3, device=NAME)
    operation(x)
    assert device.waits.total() == 1
    assert next(iter(device.waits)).startswith("devices/test_pretend.py:")


def test_what_needs_no_value_is_no_wait(device: PretendedDevice):
    x = torch.randn(3, device=NAME)
    y = torch.where(x > 0, x, 0.0)[torch.arange(2, device=NAME)].to(torch.float16)
    y.copy_(torch.ones(2))
    y += len(x) + x.numel()
    assert not device.waits


def test_the_device_is_there_only_while_it_is_in_use():
    with pretended_device():
        assert torch.accelerator.current_accelerator(check_available=True) == torch.device(NAME)
        x = torch.ones(2, device=NAME)
    assert torch.accelerator.current_accelerator(check_available=True) is None
    assert torch.accelerator.device_count() == 0
    with pytest.raises(RuntimeError, match="not in use"):
        x + x
