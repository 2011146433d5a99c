"""Foreign text in Markdown: it stands where neither Markdown nor HTML means anything."""

import re


def code_span(text: object) -> str:
    """Text in one line of Markdown that means itself: between more backticks than it has in a row."""
    line = " ".join(_printable(str(text)).split()) or "–"
    ticks = "`" * (_longest_run("`", line) + 1)
    return f"{ticks} {line} {ticks}" if "`" in line else f"`{line}`"


def fenced(text: str, language: str = "") -> str:
    """Text in a block of Markdown that means itself: between fences longer than any in it."""
    fence = "`" * max(3, _longest_run("`", text) + 1)
    inside = _printable(text).strip("\n")
    return f"{fence}{language}\n{inside}\n{fence}"


def _printable(text: str) -> str:
    """Without control characters and halves of characters, which editors and parsers stumble on."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", lines)


def _longest_run(character: str, text: str) -> int:
    return max((len(run) for run in re.findall(f"{re.escape(character)}+", text)), default=0)
