"""Render sections as Markdown.

Text from other sources, such as samples and settings, is written as code, in which neither Markdown nor HTML is active.
"""

import re
from collections.abc import Sequence

from tsugiki.report.sections import Code, Facts, Lines, Note, Part, Row, Samples, Section, Sentence
from tsugiki.report.table import Table

_PLAIN = re.compile(r"[^\W\d_][\w ,、・（）()/-]*")
"""A label in which nothing is active."""


def to_markdown(sections: Sequence[Section]) -> str:
    """Render sections, without plots and what is folded."""
    blocks = []
    for section in sections:
        blocks += [f"## {section.heading}"] if section.heading and section.parts else []
        blocks += filter(None, map(_part, section.parts))
    return "\n\n".join(blocks)


def code_span(text: object) -> str:
    """Return text as a code span in one line, whose delimiters are longer than the longest run of backticks in it."""
    line = " ".join(_printable(str(text)).split()) or "–"
    ticks = "`" * (_longest_run(line) + 1)
    return f"{ticks} {line} {ticks}" if "`" in line else f"`{line}`"


def fenced(text: str, language: str = "") -> str:
    """Return text as a fenced code block, whose fences are longer than the longest run of backticks in it."""
    fence = "`" * max(3, _longest_run(text) + 1)
    content = _printable(text).strip("\n")
    return f"{fence}{language}\n{content}\n{fence}"


def _part(part: Part) -> str:
    match part:
        case Table():
            return part.to_markdown().rstrip()
        case Facts(rows=rows):
            return " · ".join(f"{label} {text}" for label, text in rows)
        case Lines(rows=rows):
            return "\n".join(map(_line, rows))
        case Samples(texts=texts):
            written = [f"{label}:\n\n{fenced(text, 'text')}" for label, text in texts]
            return "\n\n".join([*(f"{label}{code_span(asked)}" for label, asked in part.asked), *written])
        case Code(text=text, language=language):
            return fenced(text, language)
        case Note(text=text):
            return code_span(text)
        case Sentence(text=text):
            return text
    return ""


def _line(row: Row) -> str:
    label, text = row
    return f"- {label if _PLAIN.fullmatch(label) else code_span(label)}: {code_span(text)}"


def _printable(text: str) -> str:
    """Replace control characters and lone surrogates, which editors and parsers may not handle."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", lines)


def _longest_run(text: str) -> int:
    """Return the length of the longest run of backticks in a text."""
    return max(map(len, re.findall("`+", text)), default=0)
