"""`--resume`: the settings of a run that is continued, from its record and from the command line."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from tsugiki.errors import TsugikiError
from tsugiki.io.file_names import RECORD_FILE
from tsugiki.language import _
from tsugiki.training.config_files import validated

Settings = TypeVar("Settings", bound=BaseModel)

_LENGTH = ("epochs", "max_steps", "minutes")
_SUFFIXES = (".yaml", ".yml")


def named_folder(argument: Path | None, resume: bool) -> Path | None:
    """Return the folder of a run, if the command's argument names one instead of a file of settings.

    Args:
        argument: what the user has given; with `--resume`, the folder or its `run.json`.
        resume: whether `--resume` is given.

    Raises:
        TsugikiError: a folder without `--resume`.
    """
    if argument is None or (argument.suffix in _SUFFIXES and not argument.is_dir()):
        return None
    if argument.is_dir() and not resume:
        raise TsugikiError(_("{folder} is a folder; --resume {folder} continues the run in it").format(folder=argument))
    if not resume:
        return None
    return argument.parent if argument.name == RECORD_FILE else argument


def go_to_working_directory(folder: Path) -> Path:
    """Change to the directory in which a run was started, so that its relative paths mean the same.

    Returns:
        The run's folder; its absolute path, if the directory is another one.

    Raises:
        TsugikiError: the folder holds no run.
    """
    from tsugiki.training.resume import recorded_run

    recorded = recorded_run(folder).working_directory
    if recorded is None or not Path(recorded).is_dir() or Path(recorded).samefile(Path()):
        return folder
    absolute = folder.absolute()
    os.chdir(recorded)
    return absolute


def resumed_settings(kind: type[Settings], folder: Path, given: Mapping[str, Any], path: Path | None) -> Settings:
    """Return the settings of a run that is continued: those of its record, replaced by those that are given.

    Args:
        kind: the class of the settings.
        folder: the folder of the run.
        given: settings from flags and from a file, nested.
        path: the file, for errors; None: no file.

    Raises:
        TsugikiError: the folder holds no run, or a setting is invalid.
    """
    from tsugiki.training.resume import recorded_settings

    recorded = recorded_settings(folder, kind.model_construct().model_dump(mode="json", warnings=False))
    if "method" not in kind.model_fields:
        recorded.pop("method", None)
    if any(name in given for name in _LENGTH):
        recorded = {name: value for name, value in recorded.items() if name not in _LENGTH}
    merged = {**recorded, **given, "out": str(folder)}
    for section in ("lora", "method_config"):
        if section in recorded and section in given:
            merged[section] = {**recorded[section], **given[section]}
    return validated(kind, merged, path)
