"""Fine-tuning methods: a module for each kind of adapter, and a table with a row for each method."""

from tsugiki.lazy import lazy_names

__getattr__, __dir__ = lazy_names(__name__)
