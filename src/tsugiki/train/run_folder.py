"""What the folder of a run holds, told by the names of its files. This module does not import torch."""

from pathlib import Path

from tsugiki.errors import TsugikiError
from tsugiki.io.file_names import ADAPTER_FILE, MODEL_FILE, RECORD_FILE
from tsugiki.language import _

CHECKPOINTS = "checkpoints"
"""The folder in a run's folder that holds its checkpoints."""


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, oldest first."""
    found = [path for path in folder.glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


def refuse_earlier_run(out: Path) -> None:
    """Check that no run has written anything into a folder that a new run must not replace.

    Raises:
        TsugikiError: there is something.
    """
    if any((out / name).exists() for name in (RECORD_FILE, ADAPTER_FILE, MODEL_FILE)) or checkpoints(out / CHECKPOINTS):
        raise TsugikiError(
            _("{out} already holds a run; choose another --out, or continue the run with --resume").format(out=out)
        )
