"""The plot of `benchmarks.speed.growth`: a row for each quantity that varies, with tokens/s and peak memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.guide_tables import Language
from benchmarks.speed.results import themed_svg
from tsugiki.report.html import FAINT, INK, PAPER, RULE, SERIES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDTH, _ROW, _TOP = 8.4, 1.8, 0.5  # inches
_COLOURS = {"Tsugiki": SERIES[0], "PEFT": SERIES[1]}
_LOGARITHMIC = ("model", "row-length", "rank")
_MILLION, _BILLION = 1e6, 1e9
_TITLES = {
    "en": {
        "model": "parameters of the model",
        "row-length": "tokens of the row",
        "rank": "rank r",
        "targets": "layers with an adapter, of 7 in a block",
        "threads": "threads",
        "speed": "tokens per second",
        "memory": "peak memory, GB",
        "out of memory": "out of memory",
        "ratio": "numbers: Tsugiki / PEFT",
    },
    "ja": {
        "model": "モデルのパラメータ数",
        "row-length": "行のトークン数",
        "rank": "ランク r",
        "targets": "アダプターを付ける層の数（ブロックの 7 層のうち）",
        "threads": "スレッド数",
        "speed": "トークン/秒",
        "memory": "最大メモリ（GB）",
        "out of memory": "メモリ不足",
        "ratio": "数字は Tsugiki ÷ PEFT",
    },
}


@dataclass(frozen=True)
class Line:
    """The figures of a tool in a panel, each with its place on the x axis."""

    tool: str
    speeds: Sequence[tuple[float, float]]
    """Tokens per second."""
    gigabytes: Sequence[tuple[float, float]]
    """Peak memory."""
    out_of_memory: Sequence[float] = ()
    """Places where the memory of the machine was too small."""


@dataclass(frozen=True)
class Panel:
    """What varies, and the figures of each tool."""

    name: str
    """A key of `benchmarks.speed.growth.PANELS`."""
    lines: Sequence[Line]


def plot(panels: Sequence[Panel], language: Language) -> str:
    """Return the plot as SVG; the numbers at Tsugiki's points are relative to PEFT's."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    titles = _TITLES[language]
    figure = Figure(figsize=(_WIDTH, _TOP + _ROW * len(panels)), layout="constrained", facecolor=PAPER)
    grid = figure.subplots(len(panels), 2, squeeze=False)
    for panel, (left, right) in zip(panels, grid, strict=True):
        _draw(left, panel, [(line, line.speeds) for line in panel.lines], titles, speed=True)
        _draw(right, panel, [(line, line.gigabytes) for line in panel.lines], titles, speed=False)
    grid[0][0].set_title(titles["speed"], color=INK, fontsize=10, loc="left", pad=8)
    grid[0][1].set_title(titles["memory"], color=INK, fontsize=10, loc="left", pad=8)
    handles = [
        Line2D([], [], color=colour, marker="o", markersize=4.5, label=tool) for tool, colour in _COLOURS.items()
    ]
    handles.append(Line2D([], [], linestyle="none", label=titles["ratio"]))
    figure.legend(handles=handles, loc="outside upper center", ncols=3, frameon=False, fontsize=9, labelcolor=INK)
    return themed_svg(figure)


def _draw(
    axes: "Axes",
    panel: Panel,
    lines: Sequence[tuple[Line, Sequence[tuple[float, float]]]],
    titles: dict[str, str],
    speed: bool,
) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axes.set_facecolor(PAPER)
    axes.set_axisbelow(True)
    axes.grid(axis="y", color=RULE, linewidth=0.8)
    if panel.name in _LOGARITHMIC:
        axes.set_xscale("log")
    if panel.name == "model":
        axes.set_yscale("log", base=10 if speed else 2)
    peft = dict(next((points for line, points in lines if line.tool == "PEFT"), ()))
    for line, points in lines:
        colour = _COLOURS[line.tool]
        axes.plot(*zip(*points, strict=True), color=colour, linewidth=2, marker="o", markersize=4.5) if points else None
        if line.tool == "Tsugiki":
            for x, y in points:
                if x in peft:
                    axes.annotate(f"{y / peft[x]:.2g}", (x, y), (0, 5), textcoords="offset points",
                                  ha="center", va="bottom", fontsize=7.5, color=colour)  # fmt: skip
        for x in line.out_of_memory:
            axes.axvline(x, color=colour, linewidth=1, linestyle=":")
            axes.annotate(titles["out of memory"], (x, 0.05), (-4, 0), xycoords=("data", "axes fraction"),
                          textcoords="offset points", ha="right", va="bottom", fontsize=7.5, color=colour)  # fmt: skip
    places = sorted({x for line, points in lines for x in [*line.out_of_memory, *(x for x, _ in points)]})
    axes.xaxis.set_major_locator(FixedLocator(places))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _number(x)))
    axes.margins(x=0.08, y=0.2)
    if axes.get_yscale() == "linear":
        axes.set_ylim(bottom=0)
    else:
        axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,g}"))
    axes.set_xlabel(titles[panel.name], color=FAINT, fontsize=8.5)
    axes.tick_params(length=0, colors=FAINT, labelsize=8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(RULE)


def _number(x: float) -> str:
    if x < _MILLION:
        return f"{x:,.0f}"
    return f"{x / _MILLION:.0f}M" if x < _BILLION else f"{x / _BILLION:.1f}B"
