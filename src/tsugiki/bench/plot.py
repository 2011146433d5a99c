"""The plot of a benchmark as an SVG file: tokens per second as bars, the machine's limits as lines.

The colours are the CSS variables of the report pages, so that the plot follows the viewer's light or dark theme.
"""

import io
import re
from collections.abc import Sequence
from importlib.resources import files
from typing import TYPE_CHECKING

from tsugiki.bench.results import EntryResult, Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDTH, _BAR, _FRAME = 7.0, 0.34, 1.0  # inches
# Placeholder colours, which are replaced by CSS variables in the SVG that matplotlib writes.
_INK, _FAINT, _RULE, _PAPER = "#00fe01", "#00fe02", "#00fe03", "#00fe04"
_OURS, _THEIRS, _LIMIT = "#00fe05", "#00fe06", "#00fe07"
_VARIABLES = {
    _INK: "--ink",
    _FAINT: "--faint",
    _RULE: "--line",
    _PAPER: "--paper",
    _OURS: "--s1",
    _THEIRS: "--s8",
    _LIMIT: "--s5",
}
_ROOT = re.compile(r":root \{[^}]*\}|@media \(prefers-color-scheme: dark\) \{\s*:root \{[^}]*\}\s*\}")


def plot(results: Results) -> str:
    """Return the plot as SVG; bars in the order of the table, entries without figures left out."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    rows = [row for row in results.rows if row.tokens_per_second]
    limits = {dtype: limit["tokens_per_second"] for dtype, limit in results.limits.items()}
    figure = Figure(figsize=(_WIDTH, _FRAME + _BAR * max(1, len(rows))), layout="constrained", facecolor=_PAPER)
    axes = figure.subplots()
    _draw(axes, rows, limits)
    buffer = io.StringIO()
    no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "tsugiki", "font.sans-serif": ["DejaVu Sans"]}):
        figure.savefig(buffer, format="svg", facecolor=_PAPER, metadata=no_metadata)
    text = buffer.getvalue()
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    style = "".join(_ROOT.findall((files("tsugiki.report") / "style.css").read_text(encoding="utf-8")))
    return text.replace("<defs>", f"<style>{style}</style>\n<defs>", 1)


def _draw(axes: "Axes", rows: Sequence[EntryResult], limits: dict[str, float]) -> None:
    places = range(len(rows))
    speeds = [row.tokens_per_second or 0.0 for row in rows]
    colours = [_OURS if row.name.startswith(("tsugiki", "grafted", "merged")) else _THEIRS for row in rows]
    axes.set_axisbelow(True)
    axes.grid(axis="x", color=_RULE, linewidth=0.8)
    axes.barh(places, speeds, height=0.62, color=colours)
    for place, (row, speed) in enumerate(zip(rows, speeds, strict=True)):
        spread = [speed - (row.slowest or speed)], [(row.fastest or speed) - speed]
        axes.errorbar([speed], [place], xerr=spread, color=_INK, linewidth=1)
        axes.annotate(f"{speed:,.0f}", (row.fastest or speed, place), (4, 0), color=_INK, va="center", fontsize=9,
                      textcoords="offset points")  # fmt: skip
    for dtype, speed in limits.items():
        axes.axvline(speed, color=_LIMIT, linewidth=1.2, linestyle="--")
        axes.annotate(f"limit {dtype}", (speed, 1), (0, 3), color=_LIMIT, fontsize=8.5, ha="center",
                      xycoords=("data", "axes fraction"), textcoords="offset points")  # fmt: skip
    axes.set_yticks(places, [row.name for row in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.08 * max([*speeds, *limits.values(), 1.0]))
    axes.set_xlabel("tokens per second", color=_FAINT)
    axes.tick_params(length=0, colors=_FAINT)
    axes.tick_params(axis="y", labelcolor=_INK)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(_RULE)
