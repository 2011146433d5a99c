"""Counts with their unit, such as "1 document" and "3,000 documents": `documents(3000)`."""

from collections.abc import Callable

from tsugiki.language import ngettext


def _counted(singular: str, plural: str) -> Callable[[int], str]:
    """Return a function that formats a count with its unit in the reader's language."""
    return lambda count: ngettext(singular, plural, count, count=count)


documents = _counted("{count:,} document", "{count:,} documents")
texts = _counted("{count:,} text", "{count:,} texts")
questions = _counted("{count:,} question", "{count:,} questions")
records = _counted("{count:,} record", "{count:,} records")
examples = _counted("{count:,} example", "{count:,} examples")
pairs = _counted("{count:,} pair", "{count:,} pairs")
groups = _counted("{count:,} group", "{count:,} groups")
characters = _counted("{count:,} character", "{count:,} characters")
tokens = _counted("{count:,} token", "{count:,} tokens")
rows = _counted("{count:,} row", "{count:,} rows")
windows = _counted("{count:,} window", "{count:,} windows")
steps = _counted("{count:,} step", "{count:,} steps")
