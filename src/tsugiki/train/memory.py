"""Memory of this process and of the machine, in bytes; None if the system does not report it.

In a process that has imported torch on a machine with an accelerator, it is the memory of the accelerator.
"""

import ctypes
import ctypes.util
import sys
from pathlib import Path
from typing import Any

from tsugiki.train.record import peak_memory

_RESET_PEAK = "5"  # man 5 proc, clear_refs


def resident() -> int | None:
    """Memory of this process now."""
    if (device := _accelerator()) is not None:
        return int((getattr(device, "memory_allocated", None) or device.current_allocated_memory)())  # or MPS's name
    return _read_kilobytes(Path("/proc/self/status"), "VmRSS")


def peak() -> int | None:
    """Peak memory of this process since `reset_peak`; on systems other than Linux, since the process started."""
    if (device := _accelerator()) is not None:
        # MPS does not tell the peak, but what it holds, and it keeps most of what is freed.
        return int((getattr(device, "max_memory_allocated", None) or device.driver_allocated_memory)())
    return _read_kilobytes(Path("/proc/self/status"), "VmHWM") or peak_memory() or None


def available() -> int | None:
    """Memory that the machine can still provide without swapping."""
    if hasattr(device := _accelerator(), "mem_get_info"):
        return int(device.mem_get_info()[0])
    found = [_read_kilobytes(Path("/proc/meminfo"), "MemAvailable"), _left_in_container()]
    return min((size for size in found if size is not None), default=None)


def reset_peak() -> None:
    """Return freed memory to the system, then reset what `peak` returns. Does nothing on systems other than Linux."""
    if (device := _accelerator()) is not None:
        device.empty_cache()
        if hasattr(device, "reset_peak_memory_stats"):
            device.reset_peak_memory_stats()
        return
    if sys.platform != "linux":
        return
    trim = getattr(ctypes.CDLL(ctypes.util.find_library("c")), "malloc_trim", None)
    if trim is not None:  # glibc
        trim(0)
    Path("/proc/self/clear_refs").write_text(_RESET_PEAK, encoding="ascii")


def _accelerator() -> Any:
    """Return torch's module for this machine's accelerator, such as `torch.cuda`; None if it has none."""
    torch = sys.modules.get("torch")  # not imported by entries that do not use it
    if torch is None or not torch.accelerator.is_available():
        return None
    return torch.get_device_module()


def _left_in_container() -> int | None:
    """Return what a container's limit (cgroup v2) leaves; pages of files that can be dropped do not count as used."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit, used = ((folder / name).read_text(encoding="ascii").strip() for name in ("memory.max", "memory.current"))
        lines = (folder / "memory.stat").read_text(encoding="ascii").splitlines()
        cached = dict(line.split() for line in lines).get("inactive_file", "0")
        return None if limit == "max" else max(0, int(limit) - int(used) + int(cached))
    except (OSError, ValueError):
        return None


def _read_kilobytes(file: Path, name: str) -> int | None:
    try:
        for line in file.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None
