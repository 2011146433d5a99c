"""Render self-contained HTML pages with jinja2.

Texts that are passed to a template or a macro are escaped. The result is `Markup`, which is not escaped again.
"""

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from tsugiki.language import _, language


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
