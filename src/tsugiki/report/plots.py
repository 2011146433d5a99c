"""Plots as SVG elements of a page, drawn by matplotlib.

Colours are CSS variables of the page, so that plots follow its light or dark theme. The SVG contains only numbers.
Names are in an HTML legend, because the page's fonts cover all scripts.
"""

import io
import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from tsugiki.report.page import render_macro

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Placeholder colours, which are replaced by CSS variables in the SVG that matplotlib writes.
INK, FAINT, RULE, PAPER = "#00fe01", "#00fe02", "#00fe03", "#00fe04"
SERIES = [f"#00ff{i:02x}" for i in range(1, 9)]
_VARIABLES = {INK: "--ink", FAINT: "--faint", RULE: "--line", PAPER: "--paper"} | {
    colour: f"--s{i}" for i, colour in enumerate(SERIES, 1)
}

_WIDTH, _HEIGHT = 420, 290  # CSS pixels; narrow screens scale a plot down
_TEXT = 12.5  # pixels
_LARGEST = 1e30  # matplotlib cannot place ticks near the largest floats
_MAX_POINTS = 200  # longer lines are thinned out
_MAX_MARKED_POINTS = 40  # lines with at most this many points have markers
_LABEL_OFFSETS = [
    (r * x, r * y) for r in (14.0, 28.0, 42.0) for x, y in ((0.8, 0.6), (-0.8, 0.6), (0.8, -0.6), (-0.8, -0.6))
]
_NARROW = 20  # a logarithmic axis with a smaller ratio of its ends has more ticks than powers of ten
_LINE_STYLES = ("solid", "dashed", "dotted")  # so called in CSS and in matplotlib


@dataclass(frozen=True)
class Series:
    """A line of a plot. Points that are not finite, or above 1e30, are left out."""

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
    """Plot lines over steps or other whole numbers, with a legend; empty if there is no point to draw.

    The line `below` is drawn in a low strip under the plot, with the same x axis.
    """
    from matplotlib.ticker import MaxNLocator

    if not any(_finite(line) for line in series):
        return Markup()
    figure = _figure()
    if below and _finite(below):
        axes, strip = figure.subplots(2, 1, sharex=True, height_ratios=[5, 1])
        _draw_strip(strip, below)
    else:
        axes = strip = figure.subplots()
    _draw(axes, series)
    strip.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    return _rendered(figure, series, caption)


def over_ranks(series: Sequence[Series], caption: str) -> Markup:
    """Plot lines of points (rank, value), with a logarithmic axis to base 2; empty if there is no point to draw."""
    from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

    ranks = sorted({x for line in series for x, *_ in _finite(line) if x > 0})
    if not ranks:
        return Markup()
    figure = _figure()
    axes = figure.subplots()
    axes.set_xscale("log", base=2)
    _draw(axes, series)
    axes.xaxis.set_major_locator(FixedLocator(ranks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    return _rendered(figure, series, caption)


def over_parameters(marks: Sequence[Series], caption: str) -> Markup:
    """Plot points over numbers of parameters, with a logarithmic axis; empty if there is no point to draw.

    Each mark has one point, and is numbered in the plot and in the legend by its position, from 1.
    """
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    drawn = [(str(number), mark, x, y) for number, mark in enumerate(marks, 1) for x, y, *_ in _finite(mark) if x > 0]
    if not drawn:
        return Markup()
    figure = _figure()
    axes = figure.subplots()
    _style(axes)
    axes.set_xscale("log")
    colours = [SERIES[_colour(mark, 0) % len(SERIES)] for _, mark, _, _ in drawn]
    for (_, _, x, y), colour in zip(drawn, colours, strict=True):
        axes.plot(x, y, color=colour, linestyle="none", marker="o", markersize=6)
    axes.margins(0.08)
    axes.autoscale_view()  # the positions of points are needed before the figure is drawn
    centres = axes.transData.transform([(x, y) for _, _, x, y in drawn]) * 72 / figure.dpi
    taken = [(float(x), float(y)) for x, y in centres]
    for (number, _, x, y), colour, centre in zip(drawn, colours, tuple(taken), strict=True):
        offset = _free_offset(centre, taken)
        taken.append((centre[0] + offset[0], centre[1] + offset[1]))
        axes.annotate(number, (x, y), offset, textcoords="offset points", fontsize=_TEXT, color=colour,
                      ha="center", va="center")  # fmt: skip
    sizes = [x for _, _, x, _ in drawn]
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if max(sizes) / min(sizes) < _NARROW else (1,), numticks=6))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    legend = [Series(f"{number} {mark.name}", [], colour=mark.colour) for number, mark, _, _ in drawn]
    return _rendered(figure, legend, caption)


def smoothed(points: Sequence[tuple[float, float]], window: int) -> list[tuple[float, float]]:
    """Return the moving average over `window` points (an odd number; fewer at the ends), without non-finite points."""
    finite = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    sums = np.concatenate([[0.0], np.cumsum([y for _, y in finite])])
    here = np.arange(len(finite))
    low, high = np.maximum(here - window // 2, 0), np.minimum(here + window // 2 + 1, len(finite))
    means = (sums[high] - sums[low]) / (high - low)
    return [(x, float(mean)) for (x, _), mean in zip(finite, means, strict=True)]


def svg_text(figure: "Figure", salt: str, **options: Any) -> str:
    """Convert a figure that is drawn in the placeholder colours to an SVG file, without metadata.

    The ids in the SVG are derived from the text `salt`, so that they differ between plots but not between calls. The
    options are those of matplotlib's `savefig`.
    """
    from matplotlib import rc_context

    buffer = io.StringIO()
    no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    # matplotlib uses the font only to measure text; the style of the page or of the viewer replaces it.
    with (
        rc_context({"svg.fonttype": "none", "svg.hashsalt": salt, "font.sans-serif": ["DejaVu Sans"]}),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the SVG contains text, not glyphs
        figure.savefig(buffer, format="svg", metadata=no_metadata, **options)
    text = buffer.getvalue()
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return text


def _free_offset(centre: tuple[float, float], taken: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return an offset from a point where its number overlaps nothing, or the one farthest from everything else."""

    def distance(offset: tuple[float, float]) -> float:
        return min(math.dist((centre[0] + offset[0], centre[1] + offset[1]), other) for other in taken)

    free = (offset for offset in _LABEL_OFFSETS if distance(offset) >= _TEXT * 1.1)
    return next(free, max(_LABEL_OFFSETS, key=distance))


def _finite(line: Series) -> list[tuple[float, ...]]:
    """Return (x, y), or (x, y, low, high) with a band, of the points that can be drawn."""
    edges: Sequence[tuple[float, ...]] = line.band or [()] * len(line.points)
    rows = [(*point, *band) for point, band in zip(line.points, edges, strict=True)]
    return [row for row in rows if all(abs(value) < _LARGEST for value in row)]


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


def _line_style(number: int) -> str:
    """Return the style of the lines whose colour has this number, because colours repeat."""
    return _LINE_STYLES[number // len(SERIES) % len(_LINE_STYLES)]


def _figure() -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(_WIDTH / 72, _HEIGHT / 72), layout="constrained")


def _style(axes: "Axes") -> None:
    """Apply the style of all plots to the axes."""
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(RULE)
    axes.tick_params(length=0, colors=FAINT, labelsize=_TEXT)
    axes.grid(axis="y", color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)


def _draw(axes: "Axes", series: Sequence[Series]) -> None:
    _style(axes)
    for position, line in enumerate(series):
        number = _colour(line, position)
        colour = SERIES[number % len(SERIES)]
        rows = _thinned(_finite(line))
        x, y = [row[0] for row in rows], [row[1] for row in rows]
        if line.band:
            axes.fill_between(x, [r[2] for r in rows], [r[3] for r in rows], color=colour, alpha=0.16, linewidth=0)
        width, alpha = (0.9, 0.4) if line.faint else (2.0, 1.0)
        marker = "o" if len(rows) <= _MAX_MARKED_POINTS and not line.faint else None
        axes.plot(x, y, color=colour, linestyle=_line_style(number), linewidth=width, alpha=alpha, marker=marker,
                  markersize=4.5)  # fmt: skip


def _draw_strip(axes: "Axes", line: Series) -> None:
    """Draw a line in a low strip, which has room for its name, 0 and its highest value."""
    _style(axes)
    points = _thinned(_finite(line))
    axes.plot([x for x, *_ in points], [y for _, y, *_ in points], color=FAINT, linewidth=1.2)
    top = max(y for _, y, *_ in points)
    axes.set_ylim(0, (top or 1) * 1.15)
    axes.set_yticks([0, top] if top else [0], ["0", f"{top:.3g}"] if top else ["0"])
    axes.set_title(line.name, loc="left", fontsize=_TEXT * 0.9, color=FAINT, pad=3)


def _rendered(figure: "Figure", series: Sequence[Series], caption: str) -> Markup:
    """Render a figure with a legend of the series."""
    legend = []
    for position, line in enumerate(series):
        number = _colour(line, position)
        colour = f"var(--s{number % len(SERIES) + 1})"
        legend.append({"name": line.name, "colour": colour, "line": _line_style(number), "faint": line.faint})
    text = svg_text(figure, caption, transparent=True)
    text = text[text.index("<g") :]  # without the prologue, the root, and a style that would apply to the whole page
    text = re.sub(r'<g id="[^"]*"/>', "", text)
    text = re.sub(r'<g id="[^"]*">', "<g>", text).replace("xlink:href", "href")
    text = re.sub(r' transform="rotate\(-0 [^"]*"', "", text)
    text = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\d\.\d\d)\d+", r"\1", tag[0]), text)
    text = re.sub(r"\s*\n\s*", "\n", text)
    root = Markup('<svg role="img" aria-label="{}" viewBox="0 0 {} {}">\n').format(caption, _WIDTH, _HEIGHT)
    return render_macro("figure", caption, legend, root + Markup(text))
