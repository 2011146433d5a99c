"""The time to a loss, on curves whose crossings are known."""

from typing import Any

import pytest
import torch
from benchmarks.race.ideas import crossing, hardest_first, ratio_and_interval, without_easiest


def points(*losses: float, documents: int = 3) -> list[dict[str, Any]]:
    """Return evaluations after 4, 6, 8 and 9 twelfths, in which the documents have the same loss."""
    shares = (4 / 12, 6 / 12, 8 / 12, 9 / 12)
    return [{"share": x, "documents": [(10 * y, 10)] * documents} for x, y in zip(shares, losses, strict=False)]


@pytest.mark.parametrize(
    ("curve", "goal", "share"),
    [
        pytest.param([(0.2, 4.0), (0.4, 3.0), (0.6, 2.0)], 2.5, 0.5, id="between"),
        pytest.param([(0.2, 4.0), (0.4, 3.0)], 2.5, 0.5, id="after"),
        pytest.param([(0.2, 4.0), (0.4, 3.0)], 4.5, 0.1, id="before"),
        pytest.param([(0.2, 4.0), (0.4, 3.0), (0.6, 3.0)], 2.0, 1.0, id="not-falling-at-the-end"),
    ],
)
def test_crossing(curve: list[tuple[float, float]], goal: float, share: float) -> None:
    assert crossing(curve, goal) == pytest.approx(share)


def test_ratio_of_an_idea_that_is_twice_as_fast() -> None:
    default, fast = points(5.0, 4.0, 3.0, 2.5), points(3.0, 2.0)
    assert ratio_and_interval([(default, fast)]) == pytest.approx((0.5, 0.5, 0.5))  # the documents do not differ
    ratio, low, high = ratio_and_interval([(default, fast), (default, points(4.0, 2.0))])
    assert ratio == pytest.approx(((1 / 2) * (5 / 8)) ** 0.5)
    assert low < 0.5
    assert high > 0.625


def test_rows_by_loss() -> None:
    losses = {row: torch.tensor([0.0, float(row)]) for row in range(4)}
    rows = [1, 0, 3, 2, 2, 3, 0, 1]
    assert hardest_first(rows, losses) == [3, 2, 1, 0, 2, 3, 0, 1]
    assert without_easiest(rows, losses) == [1, 3, 2, 2, 3, 1, 1, 3]
