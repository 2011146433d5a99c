"""Configure how the C library treats the memory that a training step frees."""

import ctypes
import gc
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # glibc's malloc.h


def keep_freed_memory() -> None:
    """Keep freed memory for the next step, instead of returning it to the operating system.

    A step allocates and frees hundreds of large tensors. By default, glibc returns each of them to the system, which
    has to clear every page before its next use: tens of thousands of page faults per step, about 6 % of its time in our
    measurement. In return, peak memory is 2 to 3 % higher. With another C library, nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, 1 << 30)
        mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)
        mallopt(_TOP_PAD, 256 << 20)


def return_freed_memory() -> None:
    """Return freed memory to the operating system, so that the peak memory of the next run does not include it."""
    gc.collect()
    if not sys.platform.startswith("linux"):
        return
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)
