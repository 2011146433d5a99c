"""Escape text of unknown content for Markdown, as code, in which neither Markdown nor HTML is interpreted."""

import re


def code_span(text: object) -> str:
    """Return text as a code span in one line, whose delimiters are longer than the longest run of backticks in it."""
    line = " ".join(_printable(str(text)).split()) or "–"
    ticks = "`" * (_longest_run("`", line) + 1)
    return f"{ticks} {line} {ticks}" if "`" in line else f"`{line}`"


def fenced(text: str, language: str = "") -> str:
    """Return text as a fenced code block, whose fences are longer than the longest run of backticks in it."""
    fence = "`" * max(3, _longest_run("`", text) + 1)
    content = _printable(text).strip("\n")
    return f"{fence}{language}\n{content}\n{fence}"


def _printable(text: str) -> str:
    """Replace control characters and lone surrogates, which editors and parsers may not handle."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", lines)


def _longest_run(character: str, text: str) -> int:
    return max((len(run) for run in re.findall(f"{re.escape(character)}+", text)), default=0)
