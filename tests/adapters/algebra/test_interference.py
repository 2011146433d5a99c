"""What the comparison with PEFT in `test_combine` does not show of the rules: chance, and equal signs."""

import torch
from torch import Generator, Tensor

from tsugiki.adapters import apply_rule, random


def tensors(n: int = 3) -> list[Tensor]:
    generator = Generator().manual_seed(0)
    return [torch.randn(6, 7, generator=generator, dtype=torch.float64) for _ in range(n)]


def test_where_the_sum_is_zero_the_positive_ones_are_elected():
    given = [torch.tensor([2.0, -3.0, 0.0]), torch.tensor([-2.0, 3.0, 0.0])]
    assert apply_rule("ties", given, [0.5, 2.0], 1.0, Generator()).tolist() == [1.0, 6.0, 0.0]


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
