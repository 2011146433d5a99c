"""`run.json`: everything that a run was and showed, written as it goes."""

import os
import platform
import sys
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tsugiki.errors import TsugikiError
from tsugiki.io.file_names import RECORD_FILE
from tsugiki.io.json import read_json, write_json
from tsugiki.train import record_v0_1

_LIBRARIES = ("tsugiki", "torch", "transformers", "accelerate", "tokenizers", "safetensors")
FORMAT = 2
"""Version of the format of `run.json`."""
_LISTS = ("evaluations", "retention_evaluations", "samples", "loss_curve")


@dataclass
class RunRecord:
    """The record of one run. Losses are in nats a token, times in seconds, memory in bytes."""

    config: dict[str, Any]
    status: str = "running"
    """"running", or "finished"."""
    versions: dict[str, str] = field(default_factory=lambda: {name: version(name) for name in _LIBRARIES})
    machine: dict[str, Any] = field(default_factory=dict)
    base: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    parameters: dict[str, Any] = field(default_factory=dict)
    resolved_settings: dict[str, Any] = field(default_factory=dict)
    """What Tsugiki chose where nothing was said."""
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    retention_evaluations: list[dict[str, Any]] = field(default_factory=list)
    """On the base's own kind of text, before and after."""
    samples: list[dict[str, Any]] = field(default_factory=list)
    training: dict[str, Any] = field(default_factory=dict)
    loss_curve: list[dict[str, Any]] = field(default_factory=list)

    def write(self, folder: Path) -> None:
        """Write `run.json`, whole or not at all."""
        write_json(folder / RECORD_FILE, self.to_json())

    def to_json(self) -> dict[str, Any]:
        """Return the content of `run.json`."""
        return {"format": FORMAT, **vars(self)}

    def forget_after(self, step: int) -> None:
        """Drop what was measured after a step, when a run goes on from an earlier checkpoint."""
        self.evaluations = [entry for entry in self.evaluations if entry["step"] <= step]
        self.retention_evaluations = [entry for entry in self.retention_evaluations if entry["step"] <= step]
        self.samples = [entry for entry in self.samples if entry["step"] <= step]


def read_record(folder: Path) -> RunRecord:
    """The record in a run's folder.

    Raises:
        TsugikiError: there is none, or it cannot be read.
    """
    fields = read_json(folder / RECORD_FILE, missing=f"{folder} holds no run: it has no {RECORD_FILE}")
    if fields.get("format") == record_v0_1.FORMAT:
        fields = record_v0_1.translate_record(fields)
    known = {name: value for name, value in fields.items() if name in RunRecord.__dataclass_fields__}
    if "config" not in known:
        raise TsugikiError(f"{folder / RECORD_FILE} is no run's record: it has no config")
    for name, value in known.items():
        kind = list if name in _LISTS else str if name == "status" else dict
        entries = value if isinstance(value, list) else ()
        if not isinstance(value, kind) or not all(isinstance(entry, dict) for entry in entries):
            raise TsugikiError(f"{folder / RECORD_FILE} is no run's record: {name} is {str(value)[:40]!r}")
    return RunRecord(**{"versions": {}, **known})


def describe_machine() -> dict[str, Any]:
    """Processor, cores, threads and accelerator of this machine."""
    import torch

    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def peak_memory() -> int:
    """The most memory that this process has held so far, in bytes; 0 where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
