"""Plots show the given numbers, in the colours and fonts of the page."""

import math
import re
import statistics
from itertools import pairwise

import pytest

from tests.report.pages import Page
from tsugiki.report import Curves, RankCurves, Series, draw, section, smoothed

VALUES = [5.735, 5.196, 5.044, 4.985, 4.955]
LINE = Series("held-out", [(24 * i, value) for i, value in enumerate(VALUES)], [(v - 0.3, v + 0.2) for v in VALUES])


def scale(svg: str) -> tuple[float, float]:
    """Return the value of one pixel, and the value at the top, from the grid lines and their labels."""
    heights = re.findall(r'<path d="M [\d.]+ ([\d.]+)\s+L [\d.]+ \1\s+" clip-path[^>]*var\(--line\)', svg)
    labels = re.findall(r"text-anchor: end[^>]*>([\d.]+)</text>", svg)
    pairs = [(float(height), float(label)) for height, label in zip(heights, labels, strict=True)]
    (low_y, low), (high_y, high) = pairs[0], pairs[-1]
    each = (high - low) / (high_y - low_y)
    return each, low - each * low_y


def marks_of(svg: str) -> list[tuple[float, float]]:
    """Where the marks of the first line are."""
    found = re.findall(r'<use href="#[^"]*" x="([\d.]+)" y="([\d.]+)" style="fill: var\(--s1\)', svg)
    return [(float(x), float(y)) for x, y in found]


def test_points_lie_where_their_values_are():
    svg = draw(Curves("Bits", [LINE]))
    each, top = scale(svg)
    marks = [y for _, y in marks_of(svg) if y < 289]  # excludes the band, which is one element at the bottom
    assert [top + each * y for y in marks] == pytest.approx(VALUES, abs=0.003)


def test_ranks_have_a_logarithmic_axis():
    svg = draw(RankCurves("Loss by rank", [Series("alpha 32", [(rank, 5 - rank / 100) for rank in (1, 2, 4, 16)])]))
    marks = [x for x, _ in marks_of(svg)]
    steps = [(b - a) / (marks[1] - marks[0]) for a, b in pairwise(marks)]
    assert steps == pytest.approx([1, 1, 2], abs=0.01)
    assert re.findall(r"text-anchor: middle[^>]*>([^<]+)</text>", svg) == ["1", "2", "4", "16"]


def test_colours_are_css_variables_and_names_are_in_the_legend():
    names = [f"実行{i}" for i in range(20)]
    figure = draw(Curves("損失 by step", [Series(name, [(0, i), (1, i + 1.0)]) for i, name in enumerate(names)]))
    page = Page(figure)
    drawing = figure[figure.index("<svg") :]
    assert not re.search(r"#[0-9a-f]{6}\b", drawing), "a colour that does not follow the theme"
    assert all(name in page.text for name in names)
    assert not re.search(r"[^\x00-\x7f−]", drawing.partition(">")[2]), "numbers only"
    legend = re.findall(r'style="(border-color[^"]*)"', figure)
    assert len(set(legend)) == len(names), "no two lines look alike"


def test_points_that_are_not_finite_are_left_out():
    holes = [(0, 5.0), (1, math.nan), (2, math.inf), (3, 4.0), (math.nan, 3.0)]
    assert draw(Curves("c", [Series("x", holes)])).count("<use href") >= 2
    empty = (
        Curves("c", [Series("x", [(0, math.nan)])]),
        Curves("c", []),
        RankCurves("c", [Series("x", [(0, math.inf)])]),
    )
    assert section("plots", "", *empty).parts == []
    assert "nan" not in draw(Curves("one point", [Series("x", [(0, 5.0)])]))


def test_smoothing_is_a_moving_average():
    xs, ys = zip(*((float(i), math.sin(i) * 3) for i in range(40)), strict=True)
    for window in (1, 3, 7, 99):
        around = [ys[max(0, i - window // 2) : i + window // 2 + 1] for i in range(40)]
        found_xs, found_ys = zip(*smoothed(list(zip(xs, ys, strict=True)), window), strict=True)
        assert found_ys == pytest.approx([statistics.mean(some) for some in around])
        assert found_xs == xs
    assert smoothed([(0, math.nan)], 3) == []
