"""Find the base that an adapter was trained on, independent of the working directory."""

from pathlib import Path

from tsugiki.adapters.files import read_base
from tsugiki.errors import TsugikiError
from tsugiki.io.file_names import RECORD_FILE
from tsugiki.io.json import read_json


def named_base(folder: Path) -> str | None:
    """Return the name of the base that an adapter names; None if it names none.

    The name can be a relative path. If there is nothing at this path, it is resolved from the working directory of the
    run that trained the adapter, which is in the run's record. The folder may be that of a run or of one of its
    checkpoints.
    """
    name = read_base(folder).name
    if name is None or _exists(Path(name).expanduser()):
        return name
    for place in (folder, folder.absolute().parent.parent):  # a checkpoint is in the folder `checkpoints` of its run
        try:
            started = read_json(place / RECORD_FILE).get("working_directory")
        except TsugikiError:  # an adapter needs no record
            continue
        if isinstance(started, str) and _exists(Path(started) / name):
            return str(Path(started) / name)
    return name


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that is too long, or has a null character
        return False
