"""Intervals against SciPy-free oracles: a plain resampling loop, and cases with a known answer."""

import math
import random
import tracemalloc

import pytest

from tsugiki.train.evaluation.interval import (
    Score,
    bits_interval,
    change_interval,
    loss_interval,
    paired_interval,
    wilson_interval,
)


def scores(count: int, spread: float, seed: int = 0) -> list[Score]:
    generator = random.Random(seed)
    found = []
    for _ in range(count):
        tokens = generator.randint(50, 150)
        found.append((tokens * (3 + spread * generator.gauss(0, 1)), tokens, tokens * 2))
    return found


def plain_interval(documents: list[Score], draws: int = 20_000) -> tuple[float, float]:
    generator = random.Random(1)
    figures = []
    for _ in range(draws):
        drawn = [generator.choice(documents) for _ in documents]
        figures.append(sum(d[0] for d in drawn) / sum(d[1] for d in drawn))
    figures.sort()
    return figures[int(draws * 0.025)], figures[int(draws * 0.975)]


def test_an_interval_is_that_of_a_plain_loop():
    documents = scores(30, 0.5)
    low, high = plain_interval(documents)
    found = loss_interval(documents)
    assert found is not None
    assert found == pytest.approx((low, high), abs=0.1 * (high - low))
    bits = bits_interval(documents)
    assert bits is not None
    assert bits == pytest.approx((found[0] / 2 / math.log(2), found[1] / 2 / math.log(2)))


def test_it_narrows_with_the_root_of_the_documents():
    few, many = loss_interval(scores(25, 0.5)), loss_interval(scores(2500, 0.5))
    assert few is not None
    assert many is not None
    assert (few[1] - few[0]) / (many[1] - many[0]) == pytest.approx(10, rel=0.35)


def test_it_covers_the_truth_as_often_as_it_says():
    inside = 0
    for seed in range(200):
        found = loss_interval(scores(40, 0.5, seed))
        assert found is not None
        inside += found[0] <= 3 <= found[1]
    assert 0.88 <= inside / 200 <= 0.99


def test_a_change_is_measured_on_the_same_documents():
    """Each document gets better by a tenth: certain, however different the documents are."""
    before = scores(10, 0.5)
    after = [(nll * 0.9, tokens, characters) for nll, tokens, characters in before]
    assert change_interval(before, after) == pytest.approx((-0.1, -0.1))
    other = [(nll * (0.8 if i % 2 else 1.1), t, c) for i, (nll, t, c) in enumerate(before)]
    found = change_interval(before, other)
    assert found is not None
    assert -0.2 <= found[0] < found[1] <= 0.1


def test_one_document_tells_nothing():
    assert loss_interval(scores(1, 0.1)) is None
    assert bits_interval(scores(1, 0.1)) is None
    assert change_interval(scores(1, 0.1), scores(1, 0.1)) is None
    assert change_interval(scores(3, 0.1), scores(2, 0.1)) is None


def test_it_is_the_same_each_time():
    assert loss_interval(scores(9, 0.3)) == loss_interval(scores(9, 0.3))


def test_very_many_documents_need_limited_memory():
    many = scores(200_000, 0.5)
    tracemalloc.start()
    found = loss_interval(many)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found is not None
    assert found[0] < 3 < found[1]
    assert found[1] - found[0] < 0.01
    assert peak < 300_000_000


@pytest.mark.parametrize(
    ("successes", "trials", "expected"),
    [(81, 263, (0.2553, 0.3662)), (15, 148, (0.0624, 0.1605)), (0, 20, (0, 0.1611)), (1, 29, (0.0061, 0.1718))],
)
def test_the_interval_of_a_share_is_that_of_newcombes_table(successes: int, trials: int, expected: tuple[float, float]):
    """R. G. Newcombe, "Two-sided confidence intervals for the single proportion", 1998, table I, method 3."""
    assert wilson_interval(successes, trials) == pytest.approx(expected, abs=5e-5)
    low, high = wilson_interval(trials - successes, trials)
    assert (1 - high, 1 - low) == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize(
    ("won", "lost", "both", "neither", "expected"),
    [(12, 2, 36, 0, (0.0569, 0.3404)), (1, 7, 1, 12, (-0.507, -0.026))],
)
def test_the_paired_interval_is_that_of_published_examples(
    won: int, lost: int, both: int, neither: int, expected: tuple[float, float]
):
    """Newcombe 1998 (paired data), table II, method 10; M. W. Fagerland and others, "Recommended tests …", 2014."""
    kinds = {(False, True): won, (True, False): lost, (True, True): both, (False, False): neither}
    pairs = [kind for kind, count in kinds.items() for _ in range(count)]
    assert paired_interval(pairs) == pytest.approx(expected, abs=6e-4)
    low, high = paired_interval([(after, before) for before, after in pairs])
    assert (-high, -low) == pytest.approx(expected, abs=6e-4)


def test_the_paired_interval_of_equal_answers_has_a_width():
    low, high = paired_interval([(True, True)] * 10)
    assert -high == low < 0 < high < 0.3
