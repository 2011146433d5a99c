"""Plots as SVG inside a page.

matplotlib draws; its colours stand for variables of the page's style, so that a plot turns dark with the page. No
names are drawn, only numbers: names stand in a legend of HTML, in the page's fonts, whatever their script.
"""

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from tsugiki.report.page import part

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH, _HEIGHT = 420, 290  # CSS pixels where there is room; a telephone shows it a little smaller
_TEXT = 12.5  # pixels
_POINTS = 200  # a line of more is thinned
_MARKED = 40  # points, up to which each is marked
_COLOURS = 8
_PLACES = [(r * x, r * y) for r in (14.0, 28.0, 42.0) for x, y in ((0.8, 0.6), (-0.8, 0.6), (0.8, -0.6), (-0.8, -0.6))]
_NARROW = 20  # times; a logarithmic axis of less wants more than its powers of ten
_LINES = (("solid", "-"), ("dashed", "--"), ("dotted", ":"))  # for CSS, for matplotlib
# Colours that nobody would choose, to be found again in what matplotlib writes.
_INK, _FAINT_INK, _RULE = "#00fe01", "#00fe02", "#00fe03"
_VARIABLES = {_INK: "--ink", _FAINT_INK: "--masked", _RULE: "--line"} | {
    f"#00ff{i:02x}": f"--s{i}" for i in range(1, _COLOURS + 1)
}


@dataclass(frozen=True)
class Series:
    """A line of a plot; points that are not finite are left out."""

    name: str
    points: Sequence[tuple[float, float]]
    """x and y."""
    band: Sequence[tuple[float, float]] = ()
    """Low and high at each point, or nothing."""
    colour: int | None = None
    """Which of the page's colours, from 0; its place among the series by default."""
    faint: bool = False
    """Drawn thin and pale, behind another line."""


def curves(series: Sequence[Series], caption: str, below: Series | None = None) -> Markup:
    """Lines over steps, or whatever else is counted.

    Args:
        series: in the order of the legend.
        caption: what it shows, with its unit.
        below: a line for a strip of its own under the plot, on the same steps.

    Returns:
        A figure with its legend; nothing where there is no point to draw.
    """
    from matplotlib.ticker import MaxNLocator

    if not any(_finite(line) for line in series):
        return Markup()
    drawn, axes, strip = _axes(below if below and _finite(below) else None)
    _draw(axes, series)
    if strip and below:
        points = _thinned(_finite(below))
        strip.plot([x for x, *_ in points], [y for _, y, *_ in points], color=_FAINT_INK, linewidth=1.2)
        top = max(y for _, y, *_ in points)
        strip.set_ylim(0, (top or 1) * 1.15)
        strip.set_yticks([0, top] if top else [0], ["0", f"{top:.3g}"] if top else ["0"])
        strip.set_title(below.name, loc="left", fontsize=_TEXT * 0.9, color=_FAINT_INK, pad=3)
    (strip or axes).xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    return part("figure", caption, _legend(series), _svg(drawn, caption))


def over_ranks(series: Sequence[Series], caption: str) -> Markup:
    """Lines over ranks, on an axis where each doubling is as wide as the next.

    Args:
        series: points are (rank, figure); one series for each other setting.
        caption: what it shows, with its unit.

    Returns:
        A figure with its legend; nothing where there is no point to draw.
    """
    from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

    ranks = sorted({x for line in series for x, *_ in _finite(line) if x > 0})
    if not ranks:
        return Markup()
    drawn, axes, _ = _axes(None)
    axes.set_xscale("log", base=2)
    _draw(axes, series)
    axes.xaxis.set_major_locator(FixedLocator(ranks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    return part("figure", caption, _legend(series), _svg(drawn, caption))


@dataclass(frozen=True)
class Mark:
    """One point of a plot, told apart by its number."""

    name: str
    x: float
    y: float
    colour: int
    """Which of the page's colours, from 0; marks of one kind share it."""


def over_parameters(marks: Sequence[Mark], caption: str) -> Markup:
    """Numbered points over parameters, on an axis where each tenfold is as wide as the next.

    Args:
        marks: x is a number of parameters; in the order of their numbers, from 1.
        caption: what it shows, with its unit.

    Returns:
        A figure with its legend, which names the numbers; nothing where there is no point to draw.
    """
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    drawn_marks = [(number, mark) for number, mark in enumerate(marks, 1) if _can_be_drawn(mark)]
    if not drawn_marks:
        return Markup()
    drawn, axes, _ = _axes(None)
    axes.set_xscale("log")
    for _, mark in drawn_marks:
        axes.plot(mark.x, mark.y, color=_of_mark(mark), linestyle="none", marker="o", markersize=6)
    axes.margins(0.08)
    axes.autoscale_view()  # places are asked for before anything is drawn
    centres = axes.transData.transform([(mark.x, mark.y) for _, mark in drawn_marks]) * 72 / drawn.dpi
    taken = [(float(x), float(y)) for x, y in centres]
    for (number, mark), centre in zip(drawn_marks, tuple(taken), strict=True):
        place = _free_place(centre, taken)
        taken.append((centre[0] + place[0], centre[1] + place[1]))
        number_text = axes.annotate(str(number), (mark.x, mark.y), place, textcoords="offset points", fontsize=_TEXT)
        number_text.set(color=_of_mark(mark), ha="center", va="center")
    few = max(mark.x for _, mark in drawn_marks) / min(mark.x for _, mark in drawn_marks) < _NARROW
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,), numticks=6))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    legend = [Series(f"{number} {mark.name}", [], colour=mark.colour % _COLOURS) for number, mark in drawn_marks]
    return part("figure", caption, _legend(legend), _svg(drawn, caption))


def _of_mark(mark: Mark) -> str:
    return f"#00ff{mark.colour % _COLOURS + 1:02x}"


def _free_place(centre: tuple[float, float], taken: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Where beside a point, in points, there is room for its number: the place farthest from all else, if none is."""

    def room(place: tuple[float, float]) -> float:
        return min(math.dist((centre[0] + place[0], centre[1] + place[1]), other) for other in taken)

    return next((place for place in _PLACES if room(place) >= _TEXT * 1.1), max(_PLACES, key=room))


def _can_be_drawn(mark: Mark) -> bool:
    return mark.x > 0 and math.isfinite(mark.x) and math.isfinite(mark.y)


def smoothed(points: Sequence[tuple[float, float]], window: int) -> list[tuple[float, float]]:
    """The mean of `window` points around each (an odd number; fewer at the ends); what is not finite is left out."""
    finite = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    sums = np.concatenate([[0.0], np.cumsum([y for _, y in finite])])
    here = np.arange(len(finite))
    low, high = np.maximum(here - window // 2, 0), np.minimum(here + window // 2 + 1, len(finite))
    means = (sums[high] - sums[low]) / (high - low)
    return [(x, float(mean)) for (x, _), mean in zip(finite, means, strict=True)]


def _finite(line: Series) -> list[tuple[float, ...]]:
    """x, y, and low and high where there is a band, of what can be drawn."""
    rows = (
        [(x, y, *edges) for (x, y), edges in zip(line.points, line.band, strict=True)]
        if line.band
        else [(x, y) for x, y in line.points]
    )
    return [row for row in rows if all(map(math.isfinite, row))]


def _thinned(rows: list[tuple[float, ...]]) -> list[tuple[float, ...]]:
    """At most about `_POINTS` rows: of each stretch the lowest and the highest, so that no peak is lost."""
    if len(rows) <= _POINTS:
        return rows
    kept = {0, len(rows) - 1}
    for stretch in np.array_split(np.arange(len(rows)), _POINTS // 2):
        heights = [rows[i][1] for i in stretch]
        kept |= {int(stretch[int(np.argmin(heights))]), int(stretch[int(np.argmax(heights))])}
    return [rows[i] for i in sorted(kept)]


def _colour(line: Series, place: int) -> int:
    return place if line.colour is None else line.colour


def _legend(series: Sequence[Series]) -> list[dict[str, object]]:
    return [
        {
            "name": line.name,
            "colour": f"var(--s{_colour(line, place) % _COLOURS + 1})",
            "line": _LINES[_colour(line, place) // _COLOURS % len(_LINES)][0],
            "faint": line.faint,
        }
        for place, line in enumerate(series)
    ]


def _axes(below: Series | None) -> "tuple[Figure, Axes, Axes | None]":
    """A figure with one pair of axes, or with a strip under it."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(_WIDTH / 72, _HEIGHT / 72), layout="constrained")
    if below is None:
        return drawn, _plain(drawn.subplots()), None
    axes, strip = drawn.subplots(2, 1, sharex=True, height_ratios=[5, 1])
    return drawn, _plain(axes), _plain(strip)


def _plain(axes: "Axes") -> "Axes":
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(_RULE)
    axes.tick_params(length=0, colors=_FAINT_INK, labelsize=_TEXT)
    axes.grid(axis="y", color=_RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    return axes


def _draw(axes: "Axes", series: Sequence[Series]) -> None:
    for place, line in enumerate(series):
        number = _colour(line, place)
        colour, style = f"#00ff{number % _COLOURS + 1:02x}", _LINES[number // _COLOURS % len(_LINES)][1]
        rows = _thinned(_finite(line))
        x, y = [row[0] for row in rows], [row[1] for row in rows]
        if line.band:
            axes.fill_between(x, [r[2] for r in rows], [r[3] for r in rows], color=colour, alpha=0.16, linewidth=0)
        width, alpha = (0.9, 0.4) if line.faint else (2.0, 1.0)
        marker = "o" if len(rows) <= _MARKED and not line.faint else None
        axes.plot(x, y, color=colour, linestyle=style, linewidth=width, alpha=alpha, marker=marker, markersize=4.5)


def _svg(drawn: "Figure", caption: str) -> Markup:
    """The figure as an element of a page: colours by name, ids of its own, no fonts, no namespaces."""
    from matplotlib import rc_context

    written = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    # The salt makes ids of two plots differ, and those of one plot the same each time. The font is what matplotlib
    # measures numbers by; the page's style replaces it.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": caption, "font.sans-serif": ["DejaVu Sans"]}):
        drawn.savefig(written, format="svg", transparent=True, metadata=nothing)
    text = written.getvalue()
    text = text[text.index("<g") :]  # after the prologue, the root, and a style that would be the whole page's
    text = re.sub(r'<g id="[^"]*"/>', "", text)
    text = re.sub(r'<g id="[^"]*">', "<g>", text).replace("xlink:href", "href")
    text = re.sub(r' transform="rotate\(-0 [^"]*"', "", text)
    text = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\d\.\d\d)\d+", r"\1", tag[0]), text)
    text = re.sub(r"\s*\n\s*", "\n", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    root = Markup('<svg role="img" aria-label="{}" viewBox="0 0 {} {}">\n').format(caption, _WIDTH, _HEIGHT)
    return root + Markup(text)
