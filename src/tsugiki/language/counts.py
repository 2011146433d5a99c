"""Counts with their unit, such as "1 document" and "3,000 documents"."""

from tsugiki.language import ngettext


def documents(count: int) -> str:
    """Return a number of documents."""
    return ngettext("{count:,} document", "{count:,} documents", count).format(count=count)


def records(count: int) -> str:
    """Return a number of records."""
    return ngettext("{count:,} record", "{count:,} records", count).format(count=count)


def examples(count: int) -> str:
    """Return a number of examples."""
    return ngettext("{count:,} example", "{count:,} examples", count).format(count=count)


def pairs(count: int) -> str:
    """Return a number of pairs."""
    return ngettext("{count:,} pair", "{count:,} pairs", count).format(count=count)


def groups(count: int) -> str:
    """Return a number of groups."""
    return ngettext("{count:,} group", "{count:,} groups", count).format(count=count)


def characters(count: int) -> str:
    """Return a number of characters."""
    return ngettext("{count:,} character", "{count:,} characters", count).format(count=count)


def tokens(count: int) -> str:
    """Return a number of tokens."""
    return ngettext("{count:,} token", "{count:,} tokens", count).format(count=count)


def rows(count: int) -> str:
    """Return a number of rows."""
    return ngettext("{count:,} row", "{count:,} rows", count).format(count=count)


def windows(count: int) -> str:
    """Return a number of windows of text."""
    return ngettext("{count:,} window", "{count:,} windows", count).format(count=count)


def steps(count: int) -> str:
    """Return a number of optimiser steps."""
    return ngettext("{count:,} step", "{count:,} steps", count).format(count=count)
