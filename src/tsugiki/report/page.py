"""Render self-contained HTML pages with jinja2.

Texts that are passed to a template or a macro are escaped. The result is `Markup`, which is not escaped again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


@dataclass(frozen=True)
class Section:
    """A section of a page: a heading and its content."""

    heading: str
    body: Markup


def page(title: str, lead: str, sections: Sequence[Section], notes: Sequence[str] = ()) -> str:
    """Render a whole page, with a light and a dark theme.

    Args:
        title: the title of the page.
        lead: a sentence with the main result, below the title.
        sections: the sections, in order.
        notes: warnings, which come before the sections.
    """
    return render("page.html", title=title, lead=lead, sections=sections, notes=notes)


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> Markup:
    """Render a table with a header for each column; line breaks in cells are kept."""
    return render_macro("table", headers, rows)


def pairs(lines: Sequence[tuple[str, str]]) -> Markup:
    """Render a table of labels and values."""
    return render_macro("pairs", lines)


def render(template: str, **values: Any) -> str:
    """Render a template of this folder. A variable that is not given is an error."""
    return _environment().get_template(template).render(values)


def render_macro(name: str, *values: object) -> Markup:
    """Render the macro `name` of `macros.html`."""
    macro = getattr(_environment().get_template("macros.html").module, name)
    return Markup(macro(*values))


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("tsugiki", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
