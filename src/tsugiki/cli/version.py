"""Versions and devices for `tsugiki --version`, without importing torch, which takes seconds."""

import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path

from tsugiki.language import _, ngettext
from tsugiki.native import is_compiled

_NVIDIA_GPUS = Path("/proc/driver/nvidia/gpus")
"""The folder in which NVIDIA's driver for Linux describes each GPU."""


def version_line() -> str:
    """Return the versions of Tsugiki and of the libraries that matter most, the device and C functions, in one line."""
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    native = _("with C functions") if is_compiled() else _("without C functions")
    return f"tsugiki {version('tsugiki')} ({libraries}, Python {platform.python_version()}; {_device()}; {native})"


def _device() -> str:
    """Return the accelerator that the installed torch can use, judged by files only, or else the processor."""
    build = version("torch").partition("+")[2]
    if sys.platform == "darwin" and platform.machine() == "arm64":
        return "mps"
    if build != "cpu":
        gpus = [_model(path) for path in sorted(_NVIDIA_GPUS.glob("*/information"))]
        if gpus:
            return "cuda: " + ", ".join(gpus)
    cores = os.cpu_count() or 1
    counted = ngettext("{count} core", "{count} cores", cores).format(count=cores)
    return f"{platform.system()} {platform.machine()}, {counted}"


def _model(information: Path) -> str:
    """Return the name of a GPU, from lines such as `Model:  NVIDIA H100`."""
    try:
        lines = information.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("Model:")), "a GPU")
