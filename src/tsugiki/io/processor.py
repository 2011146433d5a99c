"""The name of this machine's processor."""

import platform
from pathlib import Path


def processor_name() -> str:
    """Return the model of the processor, or its architecture if the model is not known."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
