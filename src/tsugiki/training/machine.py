"""The machine and the libraries that a run was trained with, as its record names them."""

import os
import platform
from importlib.metadata import version
from typing import TYPE_CHECKING

from pydantic import BaseModel

from tsugiki.io.measurements import processor_name
from tsugiki.native import is_compiled

if TYPE_CHECKING:
    import torch

_LIBRARIES = ("tsugiki", "torch", "transformers", "accelerate", "tokenizers", "safetensors")


class Machine(BaseModel):
    """The machine that a run was trained on."""

    processor: str
    cores: int | None
    threads: int
    accelerator: str | None
    """Name of the GPU that computes; None: the processor does."""
    processes: int = 1
    system: str
    python: str
    c_functions: bool | None = None
    """Whether `native.c` is compiled; None: the record is of an earlier version."""


def library_versions() -> dict[str, str]:
    """Return the versions of the libraries on which the result depends."""
    return {name: version(name) for name in _LIBRARIES}


def describe_machine(device: "torch.device", processes: int = 1) -> Machine:
    """Return processor, cores, threads and accelerator of this machine.

    Args:
        processes: how many processes share the work.
    """
    import torch

    name = None if device.type == "cpu" else device.type
    if device.type in ("cuda", "xpu"):
        name = torch.get_device_module(device).get_device_name(device)

    return Machine(
        processor=processor_name(),
        cores=os.cpu_count(),
        threads=torch.get_num_threads(),
        accelerator=name,
        processes=processes,
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        c_functions=is_compiled(),
    )
