"""Text for pages and the terminal: sizes, durations, and the descriptions in docstrings."""

import re
from collections.abc import Mapping

from tsugiki.errors import TsugikiError
from tsugiki.language import _


def format_size(count: float) -> str:
    """Format a number of bytes in kB, MB or GB (powers of 1,000)."""
    if count < 1e6:
        return f"{count / 1e3:.1f} kB"
    return f"{count / 1e6:.2f} MB" if count < 1e9 else format_gigabytes(count)


def format_gigabytes(count: float) -> str:
    """Format a number of bytes in GB, for columns whose figures are compared with each other."""
    return f"{count / 1e9:.2f} GB"


def parse_size(text: str) -> int:
    """Return the bytes of a size such as 8GB, 512 MB (powers of 1,000) or 8GiB (powers of 1,024).

    Raises a TsugikiError for another text.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT])(I?)B\s*", text, re.IGNORECASE)
    if match is None:
        raise TsugikiError("{text!r} is no size; give one such as 8GB", text=text)
    number, prefix, binary = match.groups()
    return round(float(number) * float(1024 if binary else 1000) ** (1 + "KMGT".index(prefix.upper())))


def format_duration(seconds: float) -> str:
    """Format a duration in seconds (below 90 s), minutes (below 90 min) or hours."""
    if seconds < 90:
        return _("{seconds:.0f} s", seconds=seconds)
    if seconds < 5400:
        return _("{minutes:.0f} min", minutes=seconds / 60)
    return _("{hours:.1f} h", hours=seconds / 3600)


def argument_descriptions(docstring: str) -> Mapping[str, str]:
    """Return name -> description from the `Args:` section of a docstring (from `inspect.getdoc`)."""
    found: dict[str, str] = {}
    name = ""
    for line in docstring.partition("Args:\n")[2].splitlines():
        if start := re.match(r" {4}(\w+): (.*)", line):
            name, found[start[1]] = start[1], start[2]
        elif name and line.startswith(" " * 8):
            found[name] += " " + line.strip()
        else:
            break
    return found
