"""Render sections as a self-contained HTML page, with jinja2, and plots as SVG elements, which matplotlib draws.

Each kind of part has a macro in `macros.html`. Texts that are passed to a template or a macro are escaped. The result
is `Markup`, which is not escaped again. Colours of plots are CSS variables of the page, so that they follow its theme.
Their SVG has only numbers: names are in an HTML legend, because the page's fonts cover all scripts.
"""

import io
import math
import re
import warnings
from collections.abc import Sequence
from functools import cache
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from tsugiki.language import _, language
from tsugiki.report.sections import Curves, Folded, Part, RankCurves, Section, Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def in_frame(html: str, height: int = 620) -> str:
    """Return an element for a notebook that shows a page, as high as the page.

    The frame separates the styles of the page from those of the notebook. Where a notebook runs no scripts, it is
    `height` pixels high and scrolls.
    """
    fit = "this.style.height = this.contentDocument.documentElement.scrollHeight + 'px'"
    style = f"width: 100%; height: {height}px; border: 0"
    return f'<iframe srcdoc="{escape(html)}" style="{style}" onload="{fit}"></iframe>'


def render(template: str, **values: Any) -> str:
    """Render a template of this folder. A variable that is not given is an error."""
    return _environment().get_template(template).render(values)


def render_macro(name: str, *values: object) -> Markup:
    """Render the macro `name` of `macros.html`."""
    return Markup(getattr(_environment().get_template("macros.html").module, name)(*values))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("tsugiki", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"_": _, "language": language}
    return environment


def whole_page(title: str, sections: Sequence[Section]) -> str:
    """Render a whole page, with a light and a dark theme; sections without content are left out."""
    shown = [(section.heading, to_html(section.parts)) for section in sections if section.parts]
    return render("page.html", title=title, sections=shown)


def to_html(parts: Sequence[Part]) -> Markup:
    """Render parts; plots that follow each other are side by side."""
    found = Markup()
    for are_plots, group in groupby(parts, lambda part: isinstance(part, Curves)):
        rendered = [_part(part) for part in group]
        found += render_macro("figures", rendered) if are_plots else Markup().join(rendered)
    return found


def _part(part: Part) -> Markup:
    match part:
        case Curves():
            return draw(part)
        case Folded():
            return render_macro("folded", part.summary, to_html(part.parts))
    return render_macro(type(part).__name__.lower(), part)


# Placeholder colours, which are replaced by CSS variables in the SVG that matplotlib writes.
INK, FAINT, RULE, PAPER = "#00fe01", "#00fe02", "#00fe03", "#00fe04"
SERIES = [f"#00ff{i:02x}" for i in range(1, 9)]
_VARIABLES = {INK: "--ink", FAINT: "--faint", RULE: "--line", PAPER: "--paper"} | {
    colour: f"--s{i}" for i, colour in enumerate(SERIES, 1)
}

_WIDTH, _HEIGHT = 420, 290  # CSS pixels; narrow screens scale a plot down
_TEXT = 12.5  # pixels
_MAX_MARKED_POINTS = 40  # lines with at most this many points have markers
_LINE_STYLES = ("solid", "dashed", "dotted")  # so called in CSS and in matplotlib


def draw(curves: Curves) -> Markup:
    """Draw lines, with a legend."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(_WIDTH / 72, _HEIGHT / 72), layout="constrained")
    axes = figure.subplots()
    _draw(axes, curves)
    if isinstance(curves, RankCurves):
        _scale_to_ranks(axes, curves.series)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    return _rendered(figure, curves)


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


def _line_style(number: int) -> str:
    """Return the style of the lines whose colour has this number, because colours repeat."""
    return _LINE_STYLES[number // len(SERIES) % len(_LINE_STYLES)]


def _style(axes: "Axes") -> None:
    """Apply the style of all plots to the axes."""
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(RULE)
    axes.tick_params(length=0, colors=FAINT, labelsize=_TEXT)
    axes.grid(axis="y", color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)


def _draw(axes: "Axes", curves: Curves) -> None:
    _style(axes)
    for number, line in curves.coloured():
        colour = SERIES[number % len(SERIES)]
        rows = line.drawn()
        x, y = [row[0] for row in rows], [row[1] for row in rows]
        if line.band:
            axes.fill_between(x, [r[2] for r in rows], [r[3] for r in rows], color=colour, alpha=0.16, linewidth=0)
        width, alpha = (0.9, 0.4) if line.faint else (2.0, 1.0)
        marker = "o" if len(rows) <= _MAX_MARKED_POINTS and not line.faint else None
        axes.plot(x, y, color=colour, linestyle=_line_style(number), linewidth=width, alpha=alpha, marker=marker,
                  markersize=4.5)  # fmt: skip


def _scale_to_ranks(axes: "Axes", series: Sequence[Series]) -> None:
    """Give the x axis a logarithmic scale to base 2, with a tick at each rank."""
    from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(sorted({x for line in series for x, *_ in line.drawn()})))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))


def _rendered(figure: "Figure", curves: Curves) -> Markup:
    """Render a figure with a legend of the series."""
    legend = []
    for number, line in curves.coloured():
        colour = f"var(--s{number % len(SERIES) + 1})"
        legend.append({"name": line.name, "colour": colour, "line": _line_style(number), "faint": line.faint})
    text = svg_text(figure, curves.caption, transparent=True)
    text = text[text.index("<g") :]  # without the prologue, the root, and a style that would apply to the whole page
    text = re.sub(r'<g id="[^"]*"/>', "", text)
    text = re.sub(r'<g id="[^"]*">', "<g>", text).replace("xlink:href", "href")
    text = re.sub(r' transform="rotate\(-0 [^"]*"', "", text)
    text = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\d\.\d\d)\d+", r"\1", tag[0]), text)
    text = re.sub(r"\s*\n\s*", "\n", text)
    root = Markup('<svg role="img" aria-label="{}" viewBox="0 0 {} {}">\n').format(curves.caption, _WIDTH, _HEIGHT)
    return render_macro("figure", curves.caption, legend, root + Markup(text))
