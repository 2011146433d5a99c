"""The folder of caches: files that Tsugiki can make again."""

import os
from pathlib import Path


def cache_folder(name: str) -> Path:
    """`$XDG_CACHE_HOME/tsugiki/<name>`, by default below ~/.cache; it may not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tsugiki" / name
