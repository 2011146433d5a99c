"""A fast function beside its plain definition: values and gradients."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tests.tiny import relative_error


def exactly(given: Sequence[Tensor]) -> list[Tensor]:
    """The same tensors in float64."""
    return [tensor.detach().double().requires_grad_(tensor.requires_grad) for tensor in given]


def results(function: Callable[..., Any], given: Sequence[Tensor], grad: Tensor) -> list[Tensor]:
    """The output, and the gradients of what requires one for this gradient of the output."""
    out = function(*given)
    return [out.detach(), *torch.autograd.grad(out, [tensor for tensor in given if tensor.requires_grad], grad)]


def assert_equals_formula(
    fast: Callable[..., Any],
    plain: Callable[..., Any],
    given: Sequence[Tensor],
    grad: Tensor,
    rtol: float,
    atol: tuple[float, float],
) -> None:
    """Compare output and gradients with the definition in float64, and the output without gradients with that with.

    `atol` is that of the output and of gradients, in parts of their largest values.
    """
    found, true = results(fast, given, grad), results(plain, exactly(given), grad.double())
    for number, (ours, exact) in enumerate(zip(found, true, strict=True)):
        assert ours.dtype == given[0].dtype
        largest = float(exact.abs().max()) if exact.numel() else 0.0
        torch.testing.assert_close(ours.double(), exact, rtol=rtol, atol=atol[number > 0] * largest)
    with torch.no_grad():
        assert torch.equal(fast(*given), found[0])


def assert_no_less_exact(
    found: Mapping[str, Tensor], plain: Mapping[str, Tensor], true: Mapping[str, Tensor], floor: float
) -> None:
    """Assert that each tensor has the definition's dtype and at most twice its error, and `floor`, against float64."""
    assert found.keys() == plain.keys() == true.keys()
    for name, exact in true.items():
        assert found[name].dtype == plain[name].dtype
        assert found[name].shape == exact.shape
        assert relative_error(found[name], exact) <= floor + 2 * relative_error(plain[name], exact), name
