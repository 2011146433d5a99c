"""Dropout masks: how many elements they drop, what determines which, and that kept elements do not change."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import cycle
from math import sqrt
from typing import Any

import pytest
import torch

from tests.tiny import in_pairs, seeded
from tsugiki.fast import apply_mask, keep_mask, masks_from
from tsugiki.fast.masks import _keep_mask_on_accelerator

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@in_pairs(dtype=DTYPES, p=[1e-6, 0.001, 0.1, 0.999, 1 - 1e-6])
def test_an_element_is_dropped_with_probability_p(p: float, dtype: torch.dtype):
    torch.manual_seed(0)
    count = 200_000
    kept = int(keep_mask(torch.empty(count, dtype=dtype), p).count_nonzero())
    # Five standard deviations of a binomial distribution: one run in two million is outside, and the seed is fixed.
    # p is rounded to 1/65536.
    assert abs(kept - count * (1 - p)) < 5 * sqrt(count * p * (1 - p)) + count / 65536


@pytest.mark.parametrize("p", [0.0, 0.05, 0.1, 0.9])
def test_p_is_exact_to_a_ten_thousandth(p: float):
    masks = []
    for probability in (p, p + 1e-4):
        torch.manual_seed(0)
        masks.append(keep_mask(torch.empty(2_000_000, dtype=torch.float16), probability))
    fewer, more = masks
    assert not (more & ~fewer).any(), "one seed drops what it dropped with a smaller p, and more"
    # 200 are expected. Rounding p to 1/65536 changes that by up to 15; five standard deviations are 71.
    assert abs(int((fewer & ~more).count_nonzero()) - 200) < 31 + 71


@pytest.mark.parametrize("make", [keep_mask, lambda like, p: _keep_mask_on_accelerator(like, p, [1])])
@pytest.mark.parametrize(("dtype", "shape"), zip(cycle(DTYPES), [(), (1,), (0, 3), (5,), (3, 7), (2, 3, 5)]))
def test_a_mask_has_one_byte_for_each_element(shape: tuple[int, ...], dtype: torch.dtype, make: Any):
    mask = make(torch.empty(shape, dtype=dtype), 0.5)
    assert (mask.shape, mask.dtype) == (shape, torch.int8)
    assert ((mask == 0) | (mask == -1)).all(), "all bits or none"


@pytest.mark.parametrize("dtype", DTYPES)
def test_kept_elements_are_bit_identical_and_the_others_zero(dtype: torch.dtype):
    torch.manual_seed(0)
    x = torch.randn(33, 7).to(dtype)
    before = x.clone()
    mask = keep_mask(x, 0.3)
    dropped = mask == 0
    assert 0 < dropped.sum() < x.numel()
    y = apply_mask(x, mask)
    assert torch.equal(y, before.masked_fill(dropped, 0))
    assert torch.equal(x, before)
    assert apply_mask(x, mask, out=x) is x
    assert torch.equal(x, y)


@pytest.mark.parametrize("of", [lambda x: x.T, lambda x: x[:, ::2], lambda x: x[1:2].expand(4, -1)])
def test_a_mask_applies_to_elements_whatever_their_order_in_memory(of):
    x = of(torch.randn(6, 8))
    mask = keep_mask(x, 0.4)
    assert torch.equal(apply_mask(x, mask), x.masked_fill(mask == 0, 0))


def test_rows_and_columns_are_dropped_independently():
    torch.manual_seed(0)
    dropped = (keep_mask(torch.empty(512, 512), 0.5) == 0).double() - 0.5
    for other in (dropped.roll(1, 0), dropped.roll(1, 1), dropped.T):
        assert abs(float((dropped * other).mean())) < 0.25 * 5 / 512


def test_the_seed_of_torch_determines_the_mask():
    like = torch.empty(100)
    torch.manual_seed(7)
    first, second = keep_mask(like, 0.5), keep_mask(like, 0.5)
    assert not torch.equal(first, second)
    torch.manual_seed(7)
    assert torch.equal(keep_mask(like, 0.5), first)


def test_each_thread_draws_from_its_generator():
    def draw(seed: int) -> list[torch.Tensor]:
        with masks_from(seeded(seed)):
            return [keep_mask(torch.empty(1000), 0.5) for _ in range(20)]

    wanted = [draw(seed) for seed in range(4)]
    state = torch.get_rng_state()
    with ThreadPoolExecutor(2) as pool:
        for masks, others in zip(pool.map(draw, range(4)), wanted, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(masks, others, strict=True))
    assert torch.equal(torch.get_rng_state(), state), "torch's own generator is left alone"
    assert not torch.equal(wanted[0][0], wanted[1][0])


def test_after_the_block_the_former_generator_is_used():
    like, outer = torch.empty(100), seeded(1)

    def drawn() -> torch.Tensor:
        return keep_mask(like, 0.5)

    with masks_from(outer):
        wanted = [drawn(), drawn()]
    outer.manual_seed(1)
    state = torch.get_rng_state()
    with masks_from(outer):
        found = [drawn()]
        with suppress(ZeroDivisionError), masks_from(torch.Generator()):
            raise ZeroDivisionError
        found.append(drawn())
    assert all(map(torch.equal, found, wanted))
    drawn()
    assert not torch.equal(torch.get_rng_state(), state), "torch's own, outside"


@pytest.mark.parametrize("p", [0.001, 0.1, 0.5, 0.9, 0.999])
def test_an_accelerator_drops_with_probability_p_independently(p: float):
    """Five standard deviations: all elements, lines and columns (chi squared), neighbours, and two rows."""
    size, seeds = 512, [7, 8]
    kept = _keep_mask_on_accelerator(torch.empty(2 * size, size), p, seeds).view(2, size, size) != 0
    deviation = sqrt(p * (1 - p))
    scaled = (kept.double() - (1 - p)) / deviation
    assert abs(float(scaled.sum())) < 5 * sqrt(scaled.numel())
    for axis in (1, 2):
        sums = scaled.sum(axis).flatten() / sqrt(size)
        assert abs(float((sums**2).sum()) - len(sums)) < 5 * sqrt(
            2 * len(sums) + float(len(sums) / (size * p * (1 - p)))
        )
    first, second = scaled
    for other in (second, first.roll(1, 0), first.roll(1, 1), first.roll(2, 1), first.T):
        assert abs(float((first * other).mean())) < 5 / size


def test_no_two_columns_or_lines_of_an_accelerator_are_alike():
    size = 1024
    dropped = (_keep_mask_on_accelerator(torch.empty(size, size), 0.5, [3]) == 0).double() * 2 - 1
    for matrix in (dropped, dropped.T):
        products = (matrix @ matrix.T / sqrt(size)).fill_diagonal_(0)
        assert products.abs().max() < 6.5, "half a million pairs, which are normally distributed"


def test_a_row_has_the_same_mask_on_an_accelerator_alone_together_and_cut():
    seeds = [1, 2, 3]
    together = _keep_mask_on_accelerator(torch.empty(3 * 20, 7), 0.5, seeds).chunk(3)
    for mask, seed in zip(together, seeds, strict=True):
        assert torch.equal(_keep_mask_on_accelerator(torch.empty(1, 20, 7), 0.5, [seed])[0], mask)
        assert torch.equal(_keep_mask_on_accelerator(torch.empty(11, 7), 0.5, [seed]), mask[:11])
    assert not torch.equal(together[0], together[1])
