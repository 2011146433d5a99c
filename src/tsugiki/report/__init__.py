"""Pages, tables and plots of runs, comparisons, adapters and methods, and previews of training data."""

from tsugiki.lazy import lazy_names

__getattr__, __dir__ = lazy_names(__name__)
