"""Files (atomic writes, JSON, digests, caches, safetensors), and text for users (progress, sizes, durations)."""

from tsugiki.lazy import lazy_names

__getattr__, __dir__ = lazy_names(__name__)
