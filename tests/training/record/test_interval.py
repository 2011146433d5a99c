"""Intervals against plain loops, published figures, and simulations with a known answer."""

import math
import random
from typing import Any

import numpy as np
import pytest
from benchmarks.quality.coverage import CASES, DOCUMENTS, SHARE, coverage, draw, draw_pairs, pair_intervals

from tsugiki.training import (
    Score,
    bits_interval,
    change_interval,
    effective_trials,
    loss_interval,
    paired_interval,
    ratio_intervals,
    t_percentile,
    wilson_interval,
)
from tsugiki.training.record.interval import change


def scores(count: int, spread: float, seed: int = 0) -> list[Score]:
    generator = random.Random(seed)
    tokens = [generator.randint(50, 150) for _ in range(count)]
    return [(number * (3 + spread * generator.gauss(0, 1)), number, number * 2) for number in tokens]


def plain_interval(documents: list[Score]) -> tuple[float, float]:
    """Leave out each document in a loop, and compute the degrees of freedom from whole matrices."""
    nll, tokens = (np.array([score[column] for score in documents], float) for column in (0, 1))
    ratio, shares = nll.sum() / tokens.sum(), tokens / tokens.sum()
    numbers = np.arange(len(documents))
    changes = [nll[numbers != one].sum() / tokens[numbers != one].sum() - ratio for one in numbers]
    # The changes as linear functions of the documents' own ratios.
    rows = [np.where(numbers == one, 0, shares / (1 - shares[one])) - shares for one in numbers]
    covariance = np.array(rows) @ np.array(rows).T
    degrees = np.trace(covariance) ** 2 / np.trace(covariance @ covariance)
    half = float(t_percentile(np.array(degrees))) * math.sqrt(sum(change**2 for change in changes))
    return ratio - half, ratio + half


@pytest.mark.parametrize("count", [3, 5, 30])
def test_an_interval_is_that_of_a_plain_loop(count: int):
    documents = scores(count, 0.01)
    low, high = plain_interval(documents)
    found = loss_interval(documents)
    assert found == pytest.approx((low, high), rel=1e-9)
    bits = bits_interval(documents)
    assert bits == pytest.approx((low / 2 / math.log(2), high / 2 / math.log(2)), rel=1e-9)


def test_the_percentiles_are_those_of_printed_tables():
    table = {1: 12.7062, 2: 4.3027, 3: 3.1824, 4: 2.7764, 5: 2.5706, 7: 2.3646, 10: 2.2281, 20: 2.086, 60: 2.0003}
    found = t_percentile(np.array([*table, 1e9], float))
    assert found == pytest.approx([*table.values(), 1.95996], rel=5e-5)


def test_an_interval_holds_the_truth_as_often_as_it_says():
    for case in CASES:
        for documents in DOCUMENTS:
            parts, wholes, truth = draw(case, documents, 4000)
            share = coverage(ratio_intervals(parts, wholes), truth)
            assert share > (0.89 if case.exponential else 0.94), (case, documents)  # 0.90, 0.95 in 20,000 repetitions


def test_a_change_is_measured_on_the_same_documents():
    """Each document gets better by a tenth: certain, however different the documents are."""
    before = scores(10, 0.5)
    after = [(nll * 0.9, tokens, characters) for nll, tokens, characters in before]
    assert change_interval(before, after) == pytest.approx((-0.1, -0.1))
    other = [(nll * (0.8 if i % 2 else 1.1), t, c) for i, (nll, t, c) in enumerate(before)]
    found = change_interval(before, other)
    assert -0.2 < found[0] < sum(nll for nll, *_ in other) / sum(nll for nll, *_ in before) - 1 < found[1] < 0.15
    # Three documents that disagree tell little, but never that more than everything is lost.
    assert change_interval(scores(3, 0), [(1.0, 1, 1), (1.0, 1, 1), (900.0, 1, 1)])[0] == -1  # type: ignore[index]


def test_two_documents_tell_nothing_nor_do_different_ones():
    two, three = scores(2, 0.1), scores(3, 0.1)
    assert loss_interval(two) is bits_interval(two) is change_interval(two, two) is change_interval(three, two) is None
    different = change(3.0, 2.0, scores(4, 0.1), scores(5, 0.1))
    assert (math.isnan(different.relative), different.interval) == (True, None)


@pytest.mark.parametrize(
    ("successes", "trials", "expected"),
    [(81, 263, (0.2553, 0.3662)), (15, 148, (0.0624, 0.1605)), (0, 20, (0, 0.1611)), (1, 29, (0.0061, 0.1718))],
)
def test_the_interval_of_a_share_is_that_of_newcombes_table(successes: int, trials: int, expected: tuple[float, float]):
    """R. G. Newcombe, "Two-sided confidence intervals for the single proportion", 1998, table I, method 3."""
    assert wilson_interval(successes, trials) == pytest.approx(expected, abs=5e-5)
    low, high = wilson_interval(trials - successes, trials)
    assert (1 - high, 1 - low) == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize("correlation", [0, 0.3, 0.6, 0.9])
def test_the_interval_of_pairs_with_common_prompts_holds_their_share(correlation: float):
    right = draw_pairs(12, 4, correlation, 500)
    assert 0.93 <= coverage(pair_intervals(right), SHARE) <= 0.995


def test_equal_and_few_groups():
    assert effective_trials([1, 1, 0, 0], []) == effective_trials([1, 1, 0, 0], [1, 2, 3, 4]) == 4
    assert effective_trials([1, 1, 0, 0], [3, 3, 3, 3]) == 1
    assert effective_trials([1, 0, 1, 0, 1, 0], [1, 1, 2, 2, 3, 3]) == 3, "equal groups have no error"
    assert effective_trials([1.0] * 6, [1, 1, 2, 2, 3, 3]) == 3
    repeated = [value for value in (1, 0, 1, 1, 0, 1, 1, 0) for _ in range(5)]
    assert 4 < effective_trials(repeated, [number for number in range(8) for _ in range(5)]) < 8
    change = [(False, True), (False, True), (True, True), (False, False)] * 4
    low, high = paired_interval(change)
    wide = paired_interval([pair for pair in change for _ in range(3)], np.repeat(range(16), 3).tolist())
    assert wide[0] < low < high < wide[1], "copies add nothing"


@pytest.mark.parametrize(
    ("won", "lost", "both", "neither", "expected"),
    [(12, 2, 36, 0, (0.0569, 0.3404)), (1, 7, 1, 12, (-0.507, -0.026))],
)
def test_the_paired_interval_is_that_of_published_examples(won: int, lost: int, both: int, neither: int, expected: Any):
    """Newcombe 1998 (paired data), table II, method 10; M. W. Fagerland and others, "Recommended tests …", 2014."""
    kinds = {(False, True): won, (True, False): lost, (True, True): both, (False, False): neither}
    pairs = [kind for kind, count in kinds.items() for _ in range(count)]
    assert paired_interval(pairs) == pytest.approx(expected, abs=6e-4)
    low, high = paired_interval([(after, before) for before, after in pairs])
    assert (-high, -low) == pytest.approx(expected, abs=6e-4)
