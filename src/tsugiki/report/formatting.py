"""Format numbers and intervals, for pages and for the terminal."""

import math

from tsugiki.language import _, counts
from tsugiki.training.record.interval import FEWEST_DOCUMENTS, Change, Interval

FEW_DOCUMENTS = 5
"""With fewer documents, an interval is wide (Student's t of four degrees of freedom is 2.8, of one 12.7)."""


def format_number(value: float) -> str:
    """Format a number with four significant digits, or all digits of its integer part; NaN becomes a dash."""
    if math.isnan(value):
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.4g}"


def format_with_interval(value: float, interval: Interval | None) -> str:
    """Format a number and, in a second line, its interval."""
    return format_number(value) + (
        f"\n[{format_number(interval[0])}, {format_number(interval[1])}]" if interval else ""
    )


def format_change(change: Change, digits: int = 1) -> str:
    """Format a relative change and its interval in percent; a change that could not be computed becomes a dash."""
    if math.isnan(change.relative):
        return "–"
    interval = change.interval
    low_high = f" [{interval[0]:+.{digits}%}, {interval[1]:+.{digits}%}]" if interval else ""
    return f"{change.relative:+.{digits}%}{low_high}"


def describe_intervals(documents: int) -> str:
    """Return what the brackets in a table are, as a sentence; near-duplicates count as one document."""
    if documents < FEWEST_DOCUMENTS:
        return _(
            "The text is {documents}, too few for an interval; near-duplicates count as one.",
            documents=counts.documents(documents),
        )
    if documents < FEW_DOCUMENTS:
        return _(
            "In brackets: 95 % intervals, from only {documents}; more documents make them narrower.",
            documents=counts.documents(documents),
        )
    return _("In brackets: 95 % intervals over documents.")


def format_value(value: object) -> str:
    """Format a setting: the items of a list are separated by commas."""
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
