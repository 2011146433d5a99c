"""Adapters in files: reading and writing PEFT's format, a library of adapters, operations on them, and merging."""

from tsugiki.lazy import lazy_names

__getattr__, __dir__ = lazy_names(__name__)
