"""Faster equivalents of parts of a model's forward and backward pass, each beside its plain definition."""

from tsugiki.lazy import lazy_names

__getattr__, __dir__ = lazy_names(__name__)
