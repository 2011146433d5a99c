"""Export adapters and models to GGUF, and tell which other programs can load an adapter."""

from tsugiki.lazy import lazy_names

__getattr__, __dir__ = lazy_names(__name__)
