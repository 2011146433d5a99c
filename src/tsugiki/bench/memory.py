"""What memory this process holds, and what the machine has left, in bytes. None where the system does not say."""

import ctypes
import ctypes.util
import sys
from pathlib import Path

from tsugiki.train.record import peak_memory

_RESET_PEAK = "5"  # man 5 proc, clear_refs


def resident() -> int | None:
    """Memory that this process holds now."""
    return _kilobytes(Path("/proc/self/status"), "VmRSS")


def peak() -> int | None:
    """The most that this process has held since `reset_peak`; elsewhere than on Linux, since it began."""
    return _kilobytes(Path("/proc/self/status"), "VmHWM") or peak_memory() or None


def available() -> int | None:
    """Memory that the machine can still give without swapping."""
    return _kilobytes(Path("/proc/meminfo"), "MemAvailable")


def reset_peak() -> None:
    """Let `peak` begin anew, once what is free but still held has gone back to the system."""
    if sys.platform != "linux":
        return
    trim = getattr(ctypes.CDLL(ctypes.util.find_library("c")), "malloc_trim", None)
    if trim is not None:  # glibc
        trim(0)
    Path("/proc/self/clear_refs").write_text(_RESET_PEAK, encoding="ascii")


def _kilobytes(file: Path, name: str) -> int | None:
    try:
        for line in file.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None
