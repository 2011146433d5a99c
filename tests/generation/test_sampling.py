"""How the next token of a row is drawn."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tsugiki.generation import Chooser, Sampling, draw_index


def test_indices_are_drawn_with_their_probabilities_over_seeds_and_over_steps():
    scores = torch.tensor([-torch.inf, 1.0, -3.0, 2.5, 1.5, -torch.inf, 0.0])
    probabilities = torch.softmax(scores, -1)
    for drawn in (
        [draw_index(probabilities * 5, seed, 3) for seed in range(6_000)],  # of any sum
        [draw_index(probabilities, -7, step) for step in range(6_000)],
    ):
        counts = torch.bincount(torch.tensor(drawn), minlength=7)
        assert counts[0] == counts[5] == 0, "never one of probability 0"
        assert chi_square(counts[counts > 0], 6_000 * probabilities[counts > 0]) < 18.5  # p > 0.001 with 4 degrees


@pytest.mark.parametrize("other", [(1, 0), (0, 1), (1, -1)])
def test_draws_of_neighbouring_seeds_and_steps_are_independent(other: tuple[int, int]):
    probabilities = torch.tensor([0.2, 0.3, 0.5])
    pairs = torch.zeros(3, 3)
    for seed in range(90):
        for step in range(1, 91):
            pairs[
                draw_index(probabilities, seed, step), draw_index(probabilities, seed + other[0], step + other[1])
            ] += 1
    assert chi_square(pairs, 8_100 * torch.outer(probabilities, probabilities)) < 26.1  # p > 0.001 with 8 degrees


def chi_square(counts: torch.Tensor, expected: torch.Tensor) -> float:
    return float(((counts - expected) ** 2 / expected).sum())


def test_an_index_of_probability_0_is_not_drawn_with_the_smallest_random_numbers(monkeypatch: pytest.MonkeyPatch):
    for number in (0.0, 1 - 2**-53):
        constant = SimpleNamespace(random=lambda size, number=number: np.full(size, number))
        monkeypatch.setattr(np.random, "Generator", lambda _bits, constant=constant: constant)
        assert draw_index(torch.tensor([0.0, 0.3, 0.7, 0.0]), 0, 0) == 2
        assert draw_index(torch.tensor([0.0, 1e-44, 0.0]), 0, 0) == 1


def test_a_draw_does_not_depend_on_words_that_cannot_be_drawn():
    flat = torch.ones(4096)
    assert draw_index(torch.cat([flat, torch.zeros(100)]), 0, 0) == draw_index(flat, 0, 0)


@pytest.mark.parametrize("values", [[float("nan"), 1.0], [float("inf"), 1.0], [0.0, 0.0]])
def test_probabilities_that_are_not_finite_are_refused(values: list[float]):
    with pytest.raises(ValueError, match="not finite"):
        draw_index(torch.tensor(values), 0, 0)


@pytest.mark.parametrize(
    "extreme",
    [
        {"temperature": 1e-300},
        {"temperature": 2.0, "top_p": 1e-300},
        {"temperature": 2.0, "min_p": 1.0},
        {"temperature": 1e-5, "repetition_penalty": 100.0, "presence_penalty": 2.0, "frequency_penalty": 2.0},
        {"temperature": 1e-5, "repetition_penalty": 0.01, "logit_bias": {7: 100.0, 8: -100.0}},
    ],
)
def test_settings_at_their_limits_choose_the_most_probable_token(extreme: dict[str, Any]):
    logits = torch.tensor([-40.0, 3.0, 2.0, 1.0, 0.0, -1.0, -2.0, 30.0, 5.0])
    settings = Sampling(seed=-(2**63), **extreme)
    assert Chooser(settings).choose(logits, [8], [7] if "logit_bias" in extreme else [8]) == 7
