"""One page that needs nothing else: its style, its parts, and how it gets into a file.

Text that is given to a part is escaped; what a part returns is HTML, and is not escaped again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    heading: str
    body: Markup


def page(title: str, lead: str, sections: Sequence[Section], notes: Sequence[str] = ()) -> str:
    """A whole page, in light and dark.

    Args:
        title: of the page.
        lead: the sentence that says it all.
        sections: in order.
        notes: what one should know before reading on.
    """
    return render("page.html", title=title, lead=lead, sections=sections, notes=notes)


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> Markup:
    """A table with a heading for each column; a line break in a cell is kept."""
    return part("table", headers, rows)


def pairs(lines: Sequence[tuple[str, str]]) -> Markup:
    """A table of labels and values."""
    return part("pairs", lines)


def render(template: str, **values: Any) -> str:
    """A template of this folder as text; a name that it uses and is not given is an error."""
    return _environment().get_template(template).render(values)


def part(name: str, *values: object) -> Markup:
    """A part of a page: the macro `name` of `parts.html`."""
    macro = getattr(_environment().get_template("parts.html").module, name)
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
