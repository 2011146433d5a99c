"""The figures of pairs: accuracy with ties, at the same length, and of the length alone."""

import pytest

from tsugiki.training import ScoredAnswers, summarise_pairs, wilson_interval


def test_figures_of_pairs():
    chosen = ScoredAnswers([1.0, 2.0, 3.0, 0.0], [-4.0, -6.0, -8.0, -2.0], [10, 20, 30, 5])
    rejected = ScoredAnswers([0.0, 2.0, 4.0, -1.0], [-5.0, -6.0, -7.0, -4.0], [10, 10, 31, 9])
    found = summarise_pairs(chosen, rejected)
    assert found.right == (1, 0.5, 0, 1), "equal scores count half"
    assert (found.pairs, found.accuracy) == (4, 0.625)
    assert found.accuracy_interval == wilson_interval(2, 4)
    assert found.margin == pytest.approx(1.5 - 1.25)
    assert (found.chosen, found.rejected) == (-5, -5.5)
    assert (found.chosen_tokens, found.rejected_tokens) == (16.25, 15)
    assert (found.matched, found.matched_accuracy) == (2, 0.5), "10 and 10, 30 and 31 tokens"
    assert found.longer_is_chosen == pytest.approx(1.5 / 4)
    assert found.likelier == pytest.approx(2.5 / 4)


def test_figures_of_single_answers():
    good = ScoredAnswers([0.5, -0.5], [-1.0, -2.0], [3, 4])
    bad = ScoredAnswers([-1.0], [-9.0], [5])
    found = summarise_pairs(good, bad, paired=False)
    assert found.right == (1, 0, 1)
    assert (found.pairs, found.matched_accuracy, found.longer_is_chosen) == (3, None, None)
    assert found.margin == pytest.approx(0 + 1)
