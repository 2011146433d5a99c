"""Checks of a run's settings that need no torch, so that mistakes in names and paths are reported at once."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tsugiki.data.read.files import check_data
from tsugiki.errors import TsugikiError
from tsugiki.io.atomic import check_writable
from tsugiki.io.run_folder import refuse_earlier_run
from tsugiki.language import _

_FLAGS = {"model": "--model", "data": "--data", "out": "--out"}
_PATH = ("/", ".", "~")
"""Prefixes of the names of models that are paths, and not hub ids."""


def check_settings(settings: Mapping[str, Any]) -> None:
    """Check that a run has a model, data and a folder, and that model and data exist.

    Args:
        settings: the settings of a run, not validated.

    Raises:
        TsugikiError: a setting is missing, or the model or the data do not exist.
    """
    missing = [flag for name, flag in _FLAGS.items() if settings.get(name) in (None, "")]
    if missing:
        raise TsugikiError(
            _(
                "{missing} missing: tsugiki train --model embedded --data text.txt --out runs/text, or a YAML file of "
                "settings, which tsugiki new writes"
            ).format(missing=", ".join(missing))
        )
    check_model(settings["model"])
    for name in ("data", "retention_data"):
        given = settings.get(name)
        if name == "retention_data" and given == "embedded":  # it comes with Tsugiki
            continue
        if isinstance(given, str) or (isinstance(given, list | tuple) and all(isinstance(text, str) for text in given)):
            check_data(given)


def check_model(model: Any) -> None:
    """Check that a model exists, if its name is a path.

    Raises:
        TsugikiError: there is no such file or folder.
    """
    if isinstance(model, str) and model.startswith(_PATH) and not Path(model).expanduser().exists():
        raise TsugikiError(_("no model at {model!r}: there is no such file or folder").format(model=model))


def check_new_folder(out: str) -> None:
    """Check that a new run can be written into a folder.

    Raises:
        TsugikiError: the folder holds a run already, or cannot be written.
    """
    check_writable(Path(out))
    refuse_earlier_run(Path(out))
