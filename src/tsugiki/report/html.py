"""Render sections as a self-contained HTML page. Each kind of part has a macro in `macros.html`."""

from collections.abc import Sequence
from itertools import groupby

from markupsafe import Markup

from tsugiki.report.page import render, render_macro
from tsugiki.report.plots import draw
from tsugiki.report.sections import Curves, Folded, Part, Section


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
