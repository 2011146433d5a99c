"""Frozen weights in 8 and 4 bits, and products of integers."""

from tsugiki.lazy import lazy_names

__getattr__, __dir__ = lazy_names(__name__)
