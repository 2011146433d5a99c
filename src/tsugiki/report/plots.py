"""Plots as SVG elements of a page, drawn by matplotlib.

Colours are CSS variables of the page, so that plots follow its light or dark theme. The SVG contains only numbers.
Names are in an HTML legend, because the page's fonts cover all scripts.
"""

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from tsugiki.report.page import render_macro

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH, _HEIGHT = 420, 290  # CSS pixels; narrow screens scale a plot down
_TEXT = 12.5  # pixels
_MAX_POINTS = 200  # longer lines are thinned out
_MAX_MARKED_POINTS = 40  # lines with at most this many points have markers
_COLOURS = 8
_LABEL_OFFSETS = [
    (r * x, r * y) for r in (14.0, 28.0, 42.0) for x, y in ((0.8, 0.6), (-0.8, 0.6), (0.8, -0.6), (-0.8, -0.6))
]
_NARROW = 20  # a logarithmic axis with a smaller ratio of its ends has more ticks than powers of ten
_LINES = (("solid", "-"), ("dashed", "--"), ("dotted", ":"))  # in CSS, in matplotlib
# Placeholder colours, which are replaced by CSS variables in the SVG that matplotlib writes.
_INK, _FAINT_INK, _RULE = "#00fe01", "#00fe02", "#00fe03"
_VARIABLES = {_INK: "--ink", _FAINT_INK: "--faint", _RULE: "--line"} | {
    f"#00ff{i:02x}": f"--s{i}" for i in range(1, _COLOURS + 1)
}


@dataclass(frozen=True)
class Series:
    """A line of a plot. Points that are not finite are left out."""

    name: str
    points: Sequence[tuple[float, float]]
    """(x, y)."""
    band: Sequence[tuple[float, float]] = ()
    """(low, high) at each point; empty for a line without a band."""
    colour: int | None = None
    """Number of one of the page's colours, from 0; by default the position of the line in the plot."""
    faint: bool = False
    """Whether the line is thin and pale, as the background of another one."""


def curves(series: Sequence[Series], caption: str, below: Series | None = None) -> Markup:
    """Plot lines over steps or other whole numbers.

    Args:
        series: the lines, in the order of the legend.
        caption: what the plot shows, with the unit.
        below: a line for a separate strip under the plot, with the same x axis.

    Returns:
        A figure with its legend; empty if there is no point to draw.
    """
    from matplotlib.ticker import MaxNLocator

    if not any(_finite(line) for line in series):
        return Markup()
    figure, axes, strip = _axes(below if below and _finite(below) else None)
    _draw(axes, series)
    if strip and below:
        points = _thinned(_finite(below))
        strip.plot([x for x, *_ in points], [y for _, y, *_ in points], color=_FAINT_INK, linewidth=1.2)
        top = max(y for _, y, *_ in points)
        strip.set_ylim(0, (top or 1) * 1.15)
        strip.set_yticks([0, top] if top else [0], ["0", f"{top:.3g}"] if top else ["0"])
        strip.set_title(below.name, loc="left", fontsize=_TEXT * 0.9, color=_FAINT_INK, pad=3)
    (strip or axes).xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    return render_macro("figure", caption, _legend(series), _svg(figure, caption))


def over_ranks(series: Sequence[Series], caption: str) -> Markup:
    """Plot lines over ranks, with a logarithmic axis to base 2.

    Args:
        series: lines of points (rank, value).
        caption: what the plot shows, with the unit.

    Returns:
        A figure with its legend; empty if there is no point to draw.
    """
    from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

    ranks = sorted({x for line in series for x, *_ in _finite(line) if x > 0})
    if not ranks:
        return Markup()
    figure, axes, _ = _axes(None)
    axes.set_xscale("log", base=2)
    _draw(axes, series)
    axes.xaxis.set_major_locator(FixedLocator(ranks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    return render_macro("figure", caption, _legend(series), _svg(figure, caption))


@dataclass(frozen=True)
class Mark:
    """A numbered point of a plot."""

    name: str
    x: float
    y: float
    colour: int
    """Number of one of the page's colours, from 0; marks of the same kind share it."""


def over_parameters(marks: Sequence[Mark], caption: str) -> Markup:
    """Plot numbered points over numbers of parameters, with a logarithmic axis.

    Args:
        marks: the points; their numbers are their positions, from 1.
        caption: what the plot shows, with the unit.

    Returns:
        A figure with a legend of the numbers; empty if there is no point to draw.
    """
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    drawn_marks = [(number, mark) for number, mark in enumerate(marks, 1) if _is_drawable(mark)]
    if not drawn_marks:
        return Markup()
    figure, axes, _ = _axes(None)
    axes.set_xscale("log")
    for _, mark in drawn_marks:
        axes.plot(mark.x, mark.y, color=_mark_colour(mark), linestyle="none", marker="o", markersize=6)
    axes.margins(0.08)
    axes.autoscale_view()  # the positions of points are needed before the figure is drawn
    centres = axes.transData.transform([(mark.x, mark.y) for _, mark in drawn_marks]) * 72 / figure.dpi
    taken = [(float(x), float(y)) for x, y in centres]
    for (number, mark), centre in zip(drawn_marks, tuple(taken), strict=True):
        offset = _free_offset(centre, taken)
        taken.append((centre[0] + offset[0], centre[1] + offset[1]))
        number_text = axes.annotate(str(number), (mark.x, mark.y), offset, textcoords="offset points", fontsize=_TEXT)
        number_text.set(color=_mark_colour(mark), ha="center", va="center")
    few = max(mark.x for _, mark in drawn_marks) / min(mark.x for _, mark in drawn_marks) < _NARROW
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,), numticks=6))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    legend = [Series(f"{number} {mark.name}", [], colour=mark.colour % _COLOURS) for number, mark in drawn_marks]
    return render_macro("figure", caption, _legend(legend), _svg(figure, caption))


def _mark_colour(mark: Mark) -> str:
    return f"#00ff{mark.colour % _COLOURS + 1:02x}"


def _free_offset(centre: tuple[float, float], taken: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return an offset from a point where its number overlaps nothing, or the one farthest from everything else."""

    def distance(offset: tuple[float, float]) -> float:
        return min(math.dist((centre[0] + offset[0], centre[1] + offset[1]), other) for other in taken)

    free = (offset for offset in _LABEL_OFFSETS if distance(offset) >= _TEXT * 1.1)
    return next(free, max(_LABEL_OFFSETS, key=distance))


def _is_drawable(mark: Mark) -> bool:
    return mark.x > 0 and math.isfinite(mark.x) and math.isfinite(mark.y)


def smoothed(points: Sequence[tuple[float, float]], window: int) -> list[tuple[float, float]]:
    """Return the moving average over `window` points (an odd number; fewer at the ends), without non-finite points."""
    finite = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    sums = np.concatenate([[0.0], np.cumsum([y for _, y in finite])])
    here = np.arange(len(finite))
    low, high = np.maximum(here - window // 2, 0), np.minimum(here + window // 2 + 1, len(finite))
    means = (sums[high] - sums[low]) / (high - low)
    return [(x, float(mean)) for (x, _), mean in zip(finite, means, strict=True)]


def _finite(line: Series) -> list[tuple[float, ...]]:
    """Return (x, y), or (x, y, low, high) with a band, of the points that can be drawn."""
    rows = (
        [(x, y, *edges) for (x, y), edges in zip(line.points, line.band, strict=True)]
        if line.band
        else [(x, y) for x, y in line.points]
    )
    return [row for row in rows if all(map(math.isfinite, row))]


def _thinned(rows: list[tuple[float, ...]]) -> list[tuple[float, ...]]:
    """Reduce rows to about `_MAX_POINTS`: the lowest and the highest of each section, so that peaks are kept."""
    if len(rows) <= _MAX_POINTS:
        return rows
    kept = {0, len(rows) - 1}
    for section in np.array_split(np.arange(len(rows)), _MAX_POINTS // 2):
        heights = [rows[i][1] for i in section]
        kept |= {int(section[int(np.argmin(heights))]), int(section[int(np.argmax(heights))])}
    return [rows[i] for i in sorted(kept)]


def _colour(line: Series, position: int) -> int:
    return position if line.colour is None else line.colour


def _legend(series: Sequence[Series]) -> list[dict[str, object]]:
    return [
        {
            "name": line.name,
            "colour": f"var(--s{_colour(line, position) % _COLOURS + 1})",
            "line": _LINES[_colour(line, position) // _COLOURS % len(_LINES)][0],
            "faint": line.faint,
        }
        for position, line in enumerate(series)
    ]


def _axes(below: Series | None) -> "tuple[Figure, Axes, Axes | None]":
    """Create a figure and its axes, with a strip under them if `below` is given."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH / 72, _HEIGHT / 72), layout="constrained")
    if below is None:
        return figure, _styled(figure.subplots()), None
    axes, strip = figure.subplots(2, 1, sharex=True, height_ratios=[5, 1])
    return figure, _styled(axes), _styled(strip)


def _styled(axes: "Axes") -> "Axes":
    """Apply the style of all plots to the axes, and return them."""
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(_RULE)
    axes.tick_params(length=0, colors=_FAINT_INK, labelsize=_TEXT)
    axes.grid(axis="y", color=_RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    return axes


def _draw(axes: "Axes", series: Sequence[Series]) -> None:
    for position, line in enumerate(series):
        number = _colour(line, position)
        colour, style = f"#00ff{number % _COLOURS + 1:02x}", _LINES[number // _COLOURS % len(_LINES)][1]
        rows = _thinned(_finite(line))
        x, y = [row[0] for row in rows], [row[1] for row in rows]
        if line.band:
            axes.fill_between(x, [r[2] for r in rows], [r[3] for r in rows], color=colour, alpha=0.16, linewidth=0)
        width, alpha = (0.9, 0.4) if line.faint else (2.0, 1.0)
        marker = "o" if len(rows) <= _MAX_MARKED_POINTS and not line.faint else None
        axes.plot(x, y, color=colour, linestyle=style, linewidth=width, alpha=alpha, marker=marker, markersize=4.5)


def _svg(figure: "Figure", caption: str) -> Markup:
    """Convert a figure to an SVG element for a page: colours as CSS variables, unique ids, no fonts, no namespaces."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    # The salt makes the ids of different plots differ, and keeps them the same each time. matplotlib uses the font only
    # to measure text; the page's style replaces it.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": caption, "font.sans-serif": ["DejaVu Sans"]}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=no_metadata)
    text = buffer.getvalue()
    text = text[text.index("<g") :]  # without the prologue, the root, and a style that would apply to the whole page
    text = re.sub(r'<g id="[^"]*"/>', "", text)
    text = re.sub(r'<g id="[^"]*">', "<g>", text).replace("xlink:href", "href")
    text = re.sub(r' transform="rotate\(-0 [^"]*"', "", text)
    text = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\d\.\d\d)\d+", r"\1", tag[0]), text)
    text = re.sub(r"\s*\n\s*", "\n", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    root = Markup('<svg role="img" aria-label="{}" viewBox="0 0 {} {}">\n').format(caption, _WIDTH, _HEIGHT)
    return root + Markup(text)
