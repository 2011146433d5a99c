"""Sums of tensors, thinned out: each against a loop over elements in float64."""

import torch
from torch import Generator, Tensor

from tsugiki.adapters import apply_rule, largest, random


def tensors(n: int = 3) -> list[Tensor]:
    generator = Generator().manual_seed(0)
    return [torch.randn(6, 7, generator=generator, dtype=torch.float64) for _ in range(n)]


def thinned(tensor: Tensor, density: float) -> Tensor:
    """All but the largest elements set to zero, one by one."""
    result = tensor.clone()
    order = sorted(((abs(float(v)), i) for i, v in enumerate(tensor.flatten())), reverse=True)
    for _, i in order[int(density * len(order)) :]:
        result.view(-1)[i] = 0
    return result


def ties(given: list[Tensor], weights: list[float]) -> Tensor:
    """Trim is done; elect a sign, and average what has it."""
    result = torch.zeros_like(given[0])
    for i in range(result.numel()):
        values = [float(tensor.flatten()[i]) for tensor in given]
        sign = 1 if sum(values) >= 0 else -1
        agreeing = [weight * value for weight, value in zip(weights, values, strict=True) if value * sign > 0]
        result.view(-1)[i] = sum(agreeing) / len(agreeing) if agreeing else 0
    return result


def test_ties_is_its_definition():
    given, weights = tensors(), [0.7, -0.3, 1.5]
    found = apply_rule("ties", given, weights, 0.3, Generator())
    assert torch.allclose(found, ties([thinned(tensor, 0.3) for tensor in given], weights), atol=1e-14)


def test_where_the_sum_is_zero_the_positive_ones_are_elected():
    given = [torch.tensor([2.0, -3.0, 0.0]), torch.tensor([-2.0, 3.0, 0.0])]
    assert apply_rule("ties", given, [0.5, 2.0], 1.0, Generator()).tolist() == [1.0, 6.0, 0.0]


def test_the_largest_are_kept():
    given, weights = tensors(), [0.7, -0.3, 1.5]
    expected = sum(weight * thinned(tensor, 0.4) for weight, tensor in zip(weights, given, strict=True))
    assert torch.allclose(apply_rule("magnitude_prune", given, weights, 0.4, Generator()), expected, atol=1e-14)
    assert int((largest(given[0], 0.4, Generator()) != 0).sum()) == int(0.4 * given[0].numel())


def test_dare_is_the_tensor_in_expectation_and_keeps_its_share():
    tensor, density, draws = torch.ones(40, 50, dtype=torch.float64), 0.2, 200
    generator = Generator().manual_seed(0)
    drawn = torch.stack([random(tensor, density, generator) for _ in range(draws)])
    assert set(drawn.unique().tolist()) == {0, 1 / density}
    deviation = ((1 - density) / density / draws) ** 0.5  # of the mean of `draws`
    assert ((drawn.mean(0) - 1).abs() < 6 * deviation).all()
    assert abs(float(drawn.mean()) - 1) < 6 * deviation / tensor.numel() ** 0.5


def test_one_seed_draws_one_result():
    once, again, other = (
        apply_rule("dare_ties", tensors(), [1, 1, 1], 0.5, Generator().manual_seed(s)) for s in (1, 1, 2)
    )
    assert torch.equal(once, again)
    assert not torch.equal(once, other)
