"""The folder of caches, whose files can be deleted at any time because Tsugiki can generate them again."""

import os
from pathlib import Path


def cache_folder(name: str) -> Path:
    """Return `$XDG_CACHE_HOME/tsugiki/<name>`, or `~/.cache/tsugiki/<name>`. The folder may not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tsugiki" / name
