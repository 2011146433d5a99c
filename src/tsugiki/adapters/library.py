"""The library: a folder of adapters by name, each a PEFT folder. Nothing else is kept, so nothing can disagree."""

import os
import unicodedata
from pathlib import Path

from tsugiki.adapters.files import CONFIG_FILE
from tsugiki.adapters.folders import refuse_taken
from tsugiki.errors import TsugikiError

_LONGEST = 100  # characters
_BYTES = 200  # file systems take 255, and what is being written has a longer name
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


def adapter_folder(given: str, library: Path | None = None) -> Path:
    """The folder of an adapter that a person names: a path, or else a name in the library.

    Raises:
        TsugikiError: there is neither.
    """
    path = Path(given).expanduser()
    if (path / CONFIG_FILE).is_file():
        return path
    home = library or library_folder()
    if Path(given).name == given and (home / given).is_dir():
        return home / given
    if path.is_dir():
        raise TsugikiError(f"no adapter in {given}: it has no {CONFIG_FILE}")
    raise TsugikiError(f"no adapter {given!r}: there is no such folder, and none of that name in {home}")


def new_adapter_folder(given: str, library: Path | None = None) -> Path:
    """Where a new adapter goes that a person names: a path if there is a separator in it, else a name in the library.

    Raises:
        TsugikiError: a name that cannot be, or something is there already.
    """
    is_path = any(separator in given for separator in ("/", os.sep))
    out = Path(given).expanduser() if is_path else (library or library_folder()) / check_name(given)
    refuse_taken(out)
    return out
