"""The folder of caches, whose files can be deleted at any time because Tsugiki can create them again."""

import os
from contextlib import suppress
from pathlib import Path


def cache_folder(name: str) -> Path:
    """Return `$XDG_CACHE_HOME/tsugiki/<name>`, or `~/.cache/tsugiki/<name>`. The folder may not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tsugiki" / name


def folder_size(folder: Path) -> int:
    """Return the size of all files in a folder and its subfolders in bytes; 0 if there is no such folder."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):  # removed in the meantime
            total += path.lstat().st_size if path.is_file() else 0
    return total
