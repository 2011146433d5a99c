"""Training runs: their settings (`config`), the run itself (`run`), and its parts."""

from tsugiki.lazy import lazy_names

__getattr__, __dir__ = lazy_names(__name__)
