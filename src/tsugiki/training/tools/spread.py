"""Take some of many items, so that they come from everywhere."""

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def evenly_spread(items: Sequence[T], count: int) -> list[T]:
    """Return `count` of the items, evenly spread, or all if there are no more."""
    if count >= len(items):
        return list(items)
    return [items[number * len(items) // count] for number in range(count)]
