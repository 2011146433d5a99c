"""Memory of this process and of the machine, in bytes; None if the system does not report it.

The functions measure the memory of `device`. If it is None, they measure that of the accelerator if the machine has one
and the process has imported torch, otherwise the main memory.

`limit_heaps`, `keep_freed_memory` and `return_freed_memory` configure how the C library treats memory that is freed.
With another library than glibc, they do nothing.
"""

import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsugiki.io.system import c_function

if TYPE_CHECKING:
    import torch

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -2, -3, -8  # glibc's malloc.h
_STATUS = Path("/proc/self/status")
_RESET_PEAK = "5"  # man 5 proc, clear_refs
_peak_of_others = 0  # bytes: the peak of earlier runs in this process, on systems that cannot reset it


def resident(device: "torch.device | None" = None) -> int | None:
    """Return the memory that this process uses now."""
    if (module := _accelerator(device)) is not None:
        return int((getattr(module, "memory_allocated", None) or module.current_allocated_memory)())  # the latter: MPS
    import psutil

    return int(psutil.Process().memory_info().rss)


def peak(device: "torch.device | None" = None) -> int | None:
    """Return the peak memory of this process since `reset_peak`; on systems other than Linux, since its start."""
    if (module := _accelerator(device)) is not None:
        # MPS does not report a peak. The memory that its driver holds is close to it, as it keeps most freed memory.
        return int((getattr(module, "max_memory_allocated", None) or module.driver_allocated_memory)())
    return process_peak() or None


def available(device: "torch.device | None" = None) -> int | None:
    """Return the memory that the machine can still provide without swapping."""
    if hasattr(module := _accelerator(device), "mem_get_info"):
        return int(module.mem_get_info()[0])
    import psutil

    free, left = int(psutil.virtual_memory().available), _left_in_container()
    return free if left is None else min(free, left)


def reset_peak(device: "torch.device | None" = None) -> None:
    """Return freed memory to the system, then reset what `peak` returns. Does nothing on systems other than Linux."""
    if (module := _accelerator(device)) is not None:
        module.empty_cache()
        if hasattr(module, "reset_peak_memory_stats"):
            module.reset_peak_memory_stats()
        return
    return_freed_memory()
    if sys.platform == "linux":
        reset_process_peak()


def _accelerator(device: "torch.device | None") -> Any:
    """Return torch's module for an accelerator, such as `torch.cuda`; None for a processor.

    If `device` is None, it is that of this machine's accelerator, if there is one.
    """
    torch = sys.modules.get("torch")  # not imported here, because some callers do without it
    if torch is None or (device is not None and device.type == "cpu"):
        return None
    if device is not None:
        return torch.get_device_module(device)
    return torch.get_device_module() if torch.accelerator.is_available() else None


def _left_in_container() -> int | None:
    """Return the memory left below a container's limit (cgroup v2); file pages that can be dropped count as free."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit, used = ((folder / name).read_text(encoding="ascii").strip() for name in ("memory.max", "memory.current"))
        lines = (folder / "memory.stat").read_text(encoding="ascii").splitlines()
        cached = dict(line.split() for line in lines).get("inactive_file", "0")
        return None if limit == "max" else max(0, int(limit) - int(used) + int(cached))
    except (OSError, ValueError):
        return None


def process_peak() -> int:
    """Return the peak main memory of this process, even if an accelerator computes; 0 if it is not known."""
    peak = _read_process_peak()
    return peak if peak > _peak_of_others else 0


def _read_process_peak() -> int:
    # On Linux, `ru_maxrss` is at least the memory that the parent process had when it started this one.
    with suppress(OSError, StopIteration):
        lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return int(getattr(psutil.Process().memory_info(), "peak_wset", 0))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def reset_process_peak() -> None:
    """Reset what `process_peak` returns, so that each of several runs in one process has a peak of its own.

    Only Linux can reset it. On other systems, a run that needs no more memory than those before has the peak 0.
    """
    global _peak_of_others
    try:
        Path("/proc/self/clear_refs").write_text(_RESET_PEAK, encoding="ascii")
    except OSError:
        _peak_of_others = _read_process_peak()


def limit_heaps(count: int) -> None:
    """Let threads allocate from at most `count` heaps. Call it before the first thread is started.

    By default, glibc gives each thread a heap of its own, and tensors of more than 64 MB, which do not fit into the
    heap of a thread, are returned to the system each time that they are freed. With as many heaps as there are threads
    that compute at a time, they share the heap of the main thread, which waits for them: a run of Gemma 3 270M takes
    2.3 to 2.5 GB instead of 2.9. A single heap for two threads makes a step of SmolLM2 7 % slower (docs/log.md).
    """
    if mallopt := c_function("mallopt"):
        mallopt(_ARENA_MAX, count)


def keep_freed_memory() -> None:
    """Keep freed memory for the next step, instead of returning it to the operating system.

    A step allocates and frees hundreds of large tensors. By default, glibc returns each of them to the system, which
    has to clear every page before its next use: tens of thousands of page faults per step, about 6 % of its time in our
    measurement. In return, peak memory is 2 to 3 % higher.
    """
    if mallopt := c_function("mallopt"):
        mallopt(_MMAP_THRESHOLD, 1 << 30)
        mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)
        mallopt(_TOP_PAD, 256 << 20)


def return_freed_memory() -> None:
    """Return freed memory to the operating system, so that it does not count in a later peak."""
    if malloc_trim := c_function("malloc_trim"):
        malloc_trim(0)
