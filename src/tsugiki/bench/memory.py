"""Memory of this process and of the machine, in bytes; None if the system does not report it."""

import ctypes
import ctypes.util
import sys
from pathlib import Path

from tsugiki.train.record import peak_memory

_RESET_PEAK = "5"  # man 5 proc, clear_refs


def resident() -> int | None:
    """Memory of this process now."""
    return _read_kilobytes(Path("/proc/self/status"), "VmRSS")


def peak() -> int | None:
    """Peak memory of this process since `reset_peak`; on systems other than Linux, since the process started."""
    return _read_kilobytes(Path("/proc/self/status"), "VmHWM") or peak_memory() or None


def available() -> int | None:
    """Memory that the machine can still provide without swapping."""
    return _read_kilobytes(Path("/proc/meminfo"), "MemAvailable")


def reset_peak() -> None:
    """Return freed memory to the system, then reset what `peak` returns. Does nothing on systems other than Linux."""
    if sys.platform != "linux":
        return
    trim = getattr(ctypes.CDLL(ctypes.util.find_library("c")), "malloc_trim", None)
    if trim is not None:  # glibc
        trim(0)
    Path("/proc/self/clear_refs").write_text(_RESET_PEAK, encoding="ascii")


def _read_kilobytes(file: Path, name: str) -> int | None:
    try:
        for line in file.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None
