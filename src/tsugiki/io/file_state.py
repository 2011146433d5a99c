"""Whether a file has changed since it was read, without reading it again."""

import os
from typing import TypeAlias

FileState: TypeAlias = tuple[int, ...]
"""Numbers that change when a file is written or replaced: device, inode, size and times."""


def file_state(status: os.stat_result) -> FileState:
    """Return the state of the file with this `Path.stat()`."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
