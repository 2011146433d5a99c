"""The base model: found by its name, checked, loaded, and kept in few bits; GGUF files."""

from tsugiki.lazy import lazy_names

__getattr__, __dir__ = lazy_names(__name__)
