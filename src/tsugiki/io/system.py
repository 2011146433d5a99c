"""What Linux, macOS and Windows do differently, so that tests can replace it; memory is in `training.tools.memory`."""

import ctypes
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

WINDOWS, MACOS = sys.platform == "win32", sys.platform == "darwin"

VERBOSE = "TSUGIKI_VERBOSE"
"""The environment variable that `--verbose` sets, so that details are printed, too."""
STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)
)
"""The signals that end a command. Windows has SIGBREAK for Ctrl-Break and for `ask_to_end`, and no SIGHUP."""

OWN_GROUP = 0x200 if WINDOWS else 0
"""The `creationflags` of a process that `ask_to_end` can reach: `subprocess.CREATE_NEW_PROCESS_GROUP`."""

_WAITS = (0.01, 0.03, 0.1, 0.3, 1.0)  # seconds


def is_verbose() -> bool:
    """Return whether details are printed, too: with `--verbose`, or `TSUGIKI_VERBOSE=1`."""
    return os.environ.get(VERBOSE, "") not in ("", "0")


def c_function(name: str) -> Any:
    """Return a function of Linux's C library; None on another system, or if the library does not have it."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform.startswith("linux") else None


def ask_to_end(process: int) -> None:
    """Send a process the signal after which it ends in order. SIGTERM would end it at once on Windows."""
    os.kill(process, getattr(signal, "CTRL_BREAK_EVENT", signal.SIGTERM) if WINDOWS else signal.SIGTERM)


def move(source: Path, target: Path) -> None:
    """Rename a file or a folder; an existing file is replaced.

    Windows refuses it while any program has one of the files open, as virus scanners do for a moment after a write, so
    it is tried again for 1.5 seconds there.
    """
    for seconds in _WAITS if WINDOWS else ():
        try:
            source.replace(target)
            return
        except PermissionError:
            time.sleep(seconds)
    source.replace(target)


def flush(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk. Windows supports this for files only.

    On macOS, `fsync` leaves the data in the memory of the disk; F_FULLFSYNC writes it, where the file system can.
    """
    if WINDOWS and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if WINDOWS else os.O_RDONLY)
    try:
        if not (MACOS and _flush_fully(descriptor)):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flush_fully(descriptor: int) -> bool:
    import fcntl

    try:
        fcntl.fcntl(descriptor, getattr(fcntl, "F_FULLFSYNC", 51))
    except OSError:
        return False
    return True
