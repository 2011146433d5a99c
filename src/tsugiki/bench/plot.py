"""Plot a benchmark as an SVG file: tokens per second as bars, the machine's limits as lines.

The colours are the CSS variables of the report pages, so that the plot follows the viewer's light or dark theme.
"""

import re
from importlib.resources import files
from typing import TYPE_CHECKING

from tsugiki.bench.results import Results
from tsugiki.report.plots import FAINT, INK, PAPER, RULE, SERIES, svg_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WIDTH, _BAR, _FRAME = 7.0, 0.34, 1.0  # inches
_OURS, _THEIRS, _LIMIT = SERIES[0], SERIES[7], SERIES[4]
_ROOT = re.compile(r":root \{[^}]*\}|@media \(prefers-color-scheme: dark\) \{\s*:root \{[^}]*\}\s*\}")


def plot(results: Results) -> str:
    """Return the plot as SVG, with bars in the order of the table; entries without results are left out."""
    from matplotlib.figure import Figure

    rows = [row for row in results.rows if row.tokens_per_second]
    speeds = [row.tokens_per_second or 0.0 for row in rows]
    limits = {dtype: limit["tokens_per_second"] for dtype, limit in results.limits.items()}
    figure = Figure(figsize=(_WIDTH, _FRAME + _BAR * max(1, len(rows))), layout="constrained", facecolor=PAPER)
    axes = figure.subplots()
    axes.set_facecolor(PAPER)
    axes.set_axisbelow(True)
    axes.grid(axis="x", color=RULE, linewidth=0.8)
    colours = [_OURS if row.name.startswith(("tsugiki", "grafted", "merged")) else _THEIRS for row in rows]
    axes.barh(range(len(rows)), speeds, height=0.62, color=colours)
    for place, (row, speed) in enumerate(zip(rows, speeds, strict=True)):
        spread = [speed - (row.slowest or speed)], [(row.fastest or speed) - speed]
        axes.errorbar([speed], [place], xerr=spread, color=INK, linewidth=1)
        axes.annotate(f"{speed:,.0f}", (row.fastest or speed, place), (4, 0), color=INK, va="center", fontsize=9,
                      textcoords="offset points")  # fmt: skip
    for dtype, speed in limits.items():
        axes.axvline(speed, color=_LIMIT, linewidth=1.2, linestyle="--")
        axes.annotate(f"limit {dtype}", (speed, 1), (0, 3), color=_LIMIT, fontsize=8.5, ha="center",
                      xycoords=("data", "axes fraction"), textcoords="offset points")  # fmt: skip
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.08 * max([*speeds, *limits.values(), 1.0]))
    axes.set_xlabel("tokens per second", color=FAINT)
    axes.tick_params(length=0, colors=FAINT)
    axes.tick_params(axis="y", labelcolor=INK)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(RULE)
    return themed_svg(figure)


def themed_svg(figure: "Figure") -> str:
    """Return a figure that uses the colours of `report.plots` as a standalone SVG file."""
    style = "".join(_ROOT.findall((files("tsugiki.report") / "style.css").read_text(encoding="utf-8")))
    return svg_text(figure, "tsugiki", facecolor=PAPER).replace("<defs>", f"<style>{style}</style>\n<defs>", 1)
