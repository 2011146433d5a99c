"""Find and remove the results of a run in its folder, by the names of the files. This module does not import torch."""

import shlex
from pathlib import Path

from tsugiki.errors import TsugikiError, system_error
from tsugiki.io.atomic import remove_folder
from tsugiki.io.file_names import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_FILE,
    METADATA_FILE,
    MODEL_CONFIG_FILE,
    MODEL_FILE,
    MODEL_FILES,
    MODEL_INDEX_FILE,
    RECORD_FILE,
    TOKENIZER_FILES,
)
from tsugiki.language import _

CHECKPOINTS = "checkpoints"
"""The folder in a run's folder that holds its checkpoints."""


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, oldest first."""
    found = [path for path in folder.glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
    return sorted(found, key=checkpoint_step)


def checkpoint_step(folder: Path) -> int:
    """Return the number of optimiser steps that were done when a checkpoint was written."""
    return int(folder.name.rpartition("-")[2])


def refuse_earlier_run(out: Path) -> None:
    """Check that a folder has no results of an earlier run, which a new run must not replace."""
    if any((out / name).exists() for name in (RECORD_FILE, ADAPTER_FILE, MODEL_FILE)) or checkpoints(out / CHECKPOINTS):
        raise TsugikiError(
            "{out} already holds a run: choose another {flag:out}, continue it (tsugiki train {flag:resume} {quoted}), "
            "or replace it with {flag:overwrite}",
            out=out,
            quoted=shlex.quote(str(out)),
        )


def remove_run(out: Path) -> None:
    """Remove the files and checkpoints that a run has written into its folder; other files are kept."""
    if (out / CHECKPOINTS).exists():
        remove_folder(out / CHECKPOINTS)
    patterns = (RECORD_FILE, ADAPTER_CONFIG_FILE, ADAPTER_FILE, METADATA_FILE, "report.html", MODEL_CONFIG_FILE)
    for pattern in (*patterns, "generation_config.json", MODEL_FILES, MODEL_INDEX_FILE, *TOKENIZER_FILES):
        for path in out.glob(pattern):
            try:
                path.unlink()
            except OSError as error:
                raise system_error(_("cannot remove {path}: {reason}"), path, error) from error
