"""Figures as text, for pages and the terminal alike."""

import math
import unicodedata
from typing import TypeAlias

from tsugiki.train.evaluation.interval import Change, Interval

Table: TypeAlias = tuple[list[str], list[list[str]]]
"""Headers, and rows of cells; a cell may hold a line break."""

MIN_DOCUMENTS = 10
"""Documents, below which an interval says too little."""


def figure(value: float) -> str:
    """Return a number with four digits, or with all digits before the point; a dash for not a number."""
    if math.isnan(value):
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.4g}"


def with_interval(value: float, interval: Interval | None) -> str:
    """Return a number and, in a second line, its interval."""
    return figure(value) + (f"\n[{figure(interval[0])}, {figure(interval[1])}]" if interval else "")


def format_change(change: Change, digits: int = 1) -> str:
    """Return a relative change with its interval, in percent; a dash if it could not be computed."""
    if math.isnan(change.relative):
        return "–"
    interval = change.interval
    low_high = f" [{interval[0]:+.{digits}%}, {interval[1]:+.{digits}%}]" if interval else ""
    return f"{change.relative:+.{digits}%}{low_high}"


def describe_change(change: Change) -> str:
    """Return what the interval of a change says about other documents, in words."""
    if change.interval is None:
        return "how far it holds for other documents cannot be told"
    low, high = change.interval
    return (
        f"95 % interval {low:+.1%} to {high:+.1%}, over {change.documents:,} documents"
        + ("; it may be luck" if low < 0 < high else "")
        + ("; so few make it too narrow" if change.documents < MIN_DOCUMENTS else "")
    )


def printable(text: str) -> str:
    """A text from a file of anybody's for a terminal: what would steer it, or cannot be written, is spelled out."""
    spelled = {c: c.encode("unicode_escape").decode() for c in text if unicodedata.category(c) in ("Cc", "Cs")}
    return "".join(spelled.get(c, c) if c != "\n" else c for c in text)


def format_duration(seconds: float) -> str:
    """Seconds, minutes or hours, as a person would say it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
