"""The figures of pairs: accuracy with ties, at the same length, and of the length alone."""

import numpy as np
import pytest

from tsugiki.training import ScoredAnswers, summarise_pairs, wilson_interval


def test_figures_of_pairs():
    chosen = ScoredAnswers([1.0, 2.0, 3.0, 0.0], [-4.0, -6.0, -8.0, -2.0], [10, 20, 30, 5])
    rejected = ScoredAnswers([0.0, 2.0, 4.0, -1.0], [-5.0, -6.0, -7.0, -4.0], [10, 10, 31, 9])
    found = summarise_pairs(chosen, rejected)
    assert found.right == (1, 0.5, 0, 1), "equal scores count half"
    assert (found.pairs, found.accuracy) == (4, 0.625)
    assert found.accuracy_interval == wilson_interval(2.5, 4)
    assert found.margin == pytest.approx(1.5 - 1.25)
    assert (found.chosen, found.rejected) == (-5, -5.5)
    assert (found.chosen_tokens, found.rejected_tokens) == (16.25, 15)
    assert (found.matched, found.matched_accuracy) == (2, 0.5), "10 and 10, 30 and 31 tokens"
    assert found.longer_is_chosen == pytest.approx(1.5 / 4)
    assert found.likelier == pytest.approx(2.5 / 4)


def test_pairs_of_one_prompt_do_not_count_as_independent():
    scores = np.array([1.0, 1, 1, 1, -1, -1, -1, -1, 1, 1, 1, 1])
    zeros = [0.0] * 12

    def interval(questions: list[int]) -> tuple[float, float]:
        chosen = ScoredAnswers(scores.tolist(), zeros, [3] * 12, questions)
        return summarise_pairs(chosen, ScoredAnswers(zeros, zeros, [3] * 12)).accuracy_interval

    assert interval([]) == interval(list(range(7, 19))) == interval([0] * 12) == wilson_interval(8, 12)
    low, high = interval([5] * 4 + [6] * 4 + [7] * 4)  # three prompts, each all right or all wrong
    of_three = wilson_interval(2, 3)
    assert (low <= of_three[0], high >= of_three[1]) == (True, True)
    good, bad = (ScoredAnswers(scores[:6].tolist(), zeros[:6], [3] * 6, [5, 5, 5, 6, 6, 6]) for _ in range(2))
    assert summarise_pairs(good, bad, paired=False).prompts == (0, 0, 0, 1, 1, 1) * 2


def test_figures_of_single_answers():
    good = ScoredAnswers([0.5, -0.5], [-1.0, -2.0], [3, 4])
    bad = ScoredAnswers([-1.0], [-9.0], [5])
    found = summarise_pairs(good, bad, paired=False)
    assert found.right == (1, 0, 1)
    assert (found.pairs, found.matched_accuracy, found.longer_is_chosen) == (3, None, None)
    assert found.margin == pytest.approx(0 + 1)
