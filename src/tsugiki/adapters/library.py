"""The library: a folder of adapters by name, each a PEFT folder. Nothing else is kept, so nothing can disagree."""

import os
import shutil
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from tsugiki.adapters.info import AdapterInfo, read_adapter_info
from tsugiki.adapters.verify import check_adapter, without_path
from tsugiki.errors import TsugikiError
from tsugiki.io.atomic import new_folder, refuse_existing
from tsugiki.io.file_names import ADAPTER_CONFIG_FILE, ADAPTER_FILE, METADATA_FILE, RECORD_FILE

_LONGEST = 100  # characters
_BYTES = 200  # file systems take 255, and what is being written has a longer name
_COPIED_FILES = (ADAPTER_CONFIG_FILE, ADAPTER_FILE, METADATA_FILE, RECORD_FILE, "README.md", "LICENSE")
_FORBIDDEN = frozenset('/\\:*?"<>|')  # by one system or another


def library_folder() -> Path:
    """`$TSUGIKI_ADAPTERS`, or `tsugiki/adapters` where this person's data are kept; it need not exist yet."""
    said = os.environ.get("TSUGIKI_ADAPTERS")
    if said:
        return Path(said).expanduser()
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "tsugiki" / "adapters"


def check_name(name: str) -> str:
    """The name itself, if a folder can be called so on every system.

    Raises:
        TsugikiError: it cannot.
    """
    wrong = next((c for c in name if c in _FORBIDDEN or unicodedata.category(c) in ("Cc", "Cf", "Cs")), None)
    if wrong is not None:
        raise TsugikiError(f"an adapter cannot be called {name!r}: {wrong!r} cannot stand in a name")
    if not name or name != name.strip() or name[0] in ".-" or name[-1] == "." or name == "__base__":
        raise TsugikiError(
            f"an adapter cannot be called {name!r}: a name begins with no dot or dash, ends with no dot, has no space "
            "at its ends, and is not __base__"
        )
    if len(name) > _LONGEST or len(name.encode()) > _BYTES:
        raise TsugikiError(f"an adapter cannot be called {name[:20]}…: that is longer than {_LONGEST} characters")
    return name


@dataclass(frozen=True)
class Entry:
    """A folder of the library."""

    name: str
    folder: Path
    facts: AdapterInfo | None
    """None where it is broken."""
    broken: str = ""
    """Why."""


def read_library(library: Path) -> list[Entry]:
    """What is in the library, by name; nothing where there is none yet. Hidden folders and loose files are no entries.

    Raises:
        TsugikiError: it is no folder, or cannot be read.
    """
    return [_entry(library / name) for name in _names(library)]


def member(name: str, library: Path) -> Path:
    """The folder called so in the library, whole or broken, or the link to one; it is no path.

    Raises:
        TsugikiError: there is none.
    """
    names = _names(library)
    if name in names:
        return library / name
    raise TsugikiError(f"no adapter {name!r} in {library}{_nearest(name, names)}")


def adapter_folder(given: str, library: Path | None = None) -> Path:
    """The folder of an adapter that a person names: a path, or else a name in the library.

    Raises:
        TsugikiError: there is neither.
    """
    home = library or library_folder()
    path = _path(given)
    if path and (path / ADAPTER_CONFIG_FILE).is_file():
        return path
    names = _names(home)
    if given in names:
        return home / given
    if path and path.is_dir():
        raise TsugikiError(f"no adapter in {given}: it has no {ADAPTER_CONFIG_FILE}")
    raise TsugikiError(
        f"no adapter {given!r}: there is no such folder, and none of that name in {home}{_nearest(given, names)}"
    )


def new_adapter_folder(given: str, library: Path | None = None) -> Path:
    """Where a new adapter goes that a person names: a path if there is a separator in it, else a name in the library.

    Raises:
        TsugikiError: a name that cannot be, or something is there already.
    """
    is_path = any(separator in given for separator in ("/", os.sep))
    out = Path(given).expanduser() if is_path else (library or library_folder()) / check_name(given)
    refuse_existing(out)
    return out


def add_adapter(source: Path, library: Path, name: str | None = None) -> Path:
    """Copy the adapter in a folder, a run's for example, into the library; returns where it is now.

    Args:
        source: its folder. Its record and its card come along, checkpoints and pages do not.
        library: made where there is none yet.
        name: what to call it; as its folder where nothing is said.

    Raises:
        TsugikiError: no whole adapter there, a name that cannot be or is taken, or it cannot be written.
    """
    if not source.is_dir():
        hint = "; `tsugiki adapters import` reads a GGUF file" if source.suffix == ".gguf" else ""
        raise TsugikiError(f"no adapter in {source}: it is no folder{hint}")
    called = check_name(source.resolve().name if name is None else name)
    if called in _names(library):
        raise TsugikiError(f"{called!r} is in {library} already; give another --name, or remove it first")
    check_adapter(source)
    with new_folder(library / called) as part:
        for file in _COPIED_FILES:
            if (source / file).is_file():
                shutil.copy2(source / file, part / file)
    return library / called


def rename_adapter(old: str, new: str, library: Path) -> Path:
    """Give a folder of the library another name; returns where it is now.

    Raises:
        TsugikiError: there is none of the old name, the new one cannot be or is taken, or the library cannot be
            written.
    """
    folder = member(old, library)
    target = library / check_name(new)
    if os.path.lexists(target):
        raise TsugikiError(f"{new!r} is in {library} already; choose another name, or remove it first")
    try:
        return folder.rename(target)
    except OSError as error:
        raise TsugikiError(f"cannot rename {folder}: {error.strerror or error}") from error


def _names(library: Path) -> list[str]:
    try:
        found = [Path(one.path) for one in os.scandir(library) if not one.name.startswith(".")]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise TsugikiError(f"the library {library} cannot be read: {error.strerror or error}") from error
    return sorted(path.name for path in found if path.is_symlink() or path.is_dir())


def _entry(folder: Path) -> Entry:
    try:
        if not folder.is_dir():
            raise TsugikiError(f"a link to {folder.readlink()}, where no folder is")
        return Entry(folder.name, folder, read_adapter_info(folder))
    except TsugikiError as error:
        return Entry(folder.name, folder, None, without_path(str(error), folder))


def _path(given: str) -> Path | None:
    """What was given as a path; None where it cannot be one."""
    try:
        path = Path(given).expanduser()
        path.is_dir()
    except (OSError, RuntimeError):  # too long, or ~ of nobody
        return None
    return path if given else None


def _nearest(name: str, names: Sequence[str]) -> str:
    near = get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
