"""Figures as text, for pages and the terminal alike."""

import math
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from tsugiki.train.evaluation.interval import Interval, change_interval

Table: TypeAlias = tuple[list[str], list[list[str]]]
"""Headers, and rows of cells; a cell may hold a line break."""

MIN_DOCUMENTS = 10
"""Documents, below which an interval says too little."""


def number(value: object) -> float:
    """A figure of a record; not a number where there is none."""
    return float(value) if isinstance(value, int | float) else math.nan


def figure(value: object) -> str:
    """Four digits, or all before the point; a dash where there is nothing."""
    given = number(value)
    if math.isnan(given):
        return "–"
    return f"{given:,.0f}" if abs(given) >= 1000 else f"{given:#.4g}"


def with_interval(measured: Mapping[str, Any], name: str) -> str:
    """A figure and, in a second line, its interval."""
    interval = measured.get(f"{name}_interval")
    return figure(measured.get(name)) + (f"\n[{figure(interval[0])}, {figure(interval[1])}]" if interval else "")


def change(before: Mapping[str, Any], after: Mapping[str, Any], name: str) -> float:
    """Relative change of a figure; not a number where it cannot be told."""
    first, last = number(before.get(name)), number(after.get(name))
    return last / first - 1 if first and math.isfinite(first) and math.isfinite(last) else math.nan


def interval_of_change(before: Mapping[str, Any], after: Mapping[str, Any]) -> Interval | None:
    """95 % interval of the change of loss and of bits per character; None where it cannot be told."""
    interval = change_interval(before.get("documents") or (), after.get("documents") or ())
    return interval if interval and all(map(math.isfinite, interval)) else None


def describe_interval(interval: Interval | None, documents: int) -> str:
    """How sure a change is.

    Args:
        interval: of the change.
        documents: that it was measured on.
    """
    if interval is None:
        return "how far it holds for other documents cannot be told"
    return (
        f"95 % interval {interval[0]:+.1%} to {interval[1]:+.1%}, over {documents:,} documents"
        + ("; it may be luck" if interval[0] < 0 < interval[1] else "")
        + ("; so few make it too narrow" if documents < MIN_DOCUMENTS else "")
    )


def printable(text: str) -> str:
    """A text from a file of anybody's for a terminal: what would steer it, or cannot be written, is spelled out."""
    spelled = {c: c.encode("unicode_escape").decode() for c in text if unicodedata.category(c) in ("Cc", "Cs")}
    return "".join(spelled.get(c, c) if c != "\n" else c for c in text)


def fill_template(lines: Sequence[tuple[str, str]], values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Labels and texts with the values in their places; a line that lacks a value is left out.

    Args:
        lines: labels, and texts as `str.format` takes them.
        values: nested as the texts say.
    """
    found = []
    for label, text in lines:
        try:
            found.append((label, text.format_map(values)))
        except (KeyError, TypeError, ValueError):  # a record of another version, or null in it
            continue
    return found
