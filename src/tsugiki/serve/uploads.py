"""Uploaded texts: files in a folder of the library, with limits for a file, for all files and for the free disk space.

A request names a file, and never a path. The name that a browser gives is changed into one that every system accepts,
and ends with one of a few suffixes, so that no file is a template, a config or code. Nothing is unpacked here: the
reader of texts does that in a process of its own, and refuses a zip that unpacks to an unusual size.
"""

import asyncio
import shutil
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from starlette.requests import Request

from tsugiki.data.read.files import describe_data
from tsugiki.errors import system_error
from tsugiki.io.atomic import make_folder, new_file
from tsugiki.io.file_names import DATA_SUFFIXES
from tsugiki.io.formatting import format_size
from tsugiki.language import _
from tsugiki.serve.errors import ApiError
from tsugiki.serve.folders import entries, inside, is_allowed
from tsugiki.serve.protocol import read_body

FOLDER = ".texts"
"""The folder in the library; no adapter's name can begin with a dot."""
_REFUSED = (".json", ".html", ".htm")  # a config, or a page with a script
SUFFIXES = tuple(suffix for suffix in DATA_SUFFIXES if suffix not in _REFUSED)
LARGEST = 64_000_000  # bytes of a file
MOST_BYTES = 1_000_000_000  # of all files
MOST_FILES = 500
SPARE = 256_000_000  # bytes of the disk that stay free
_SECONDS = 600  # the longest time in which a file may arrive
_LONGEST = 60  # characters of a name without its suffix


class Uploads:
    """The folder of uploaded texts. One file is received at a time, because it is held in memory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._receiving = asyncio.Lock()

    def listing(self) -> dict[str, Any]:
        """Return the files, and what may be sent."""
        return {
            "files": [{"name": name, "size": format_size(size)} for name, size in self._files().items()],
            "suffixes": SUFFIXES,
            "largest": LARGEST,
            "limit": f"{LARGEST // 10**6} MB",
        }

    async def receive(self, request: Request) -> str:
        """Write the body of a request into a new file, and return its name; that of an equal file if there is one."""
        path = self.new_path(request.query_params.get("name", ""))
        async with self._receiving:
            content = await read_body(request, LARGEST, _SECONDS)
            return await asyncio.to_thread(self.put, path.name, content)

    def put(self, name: str, content: bytes) -> str:
        """Write a file, unless there is one of this kind with this content; return the file's name."""
        kind = len(content), Path(name).suffix
        similar = (self.folder / one for one, size in self._files().items() if (size, Path(one).suffix) == kind)
        if known := next((path.name for path in similar if path.read_bytes() == content), None):
            return known
        self.check_room(len(content))
        path = self.new_path(name)  # again: another file may have got this name meanwhile
        with new_file(path) as temporary:
            temporary.write_bytes(content)
        return path.name

    def new_path(self, given: str) -> Path:
        """Return the path of a new file, whose folder exists, for the name that a browser or a reader gives."""
        self.check_room(0)
        stem, suffix = _clean(given)
        make_folder(self.folder)
        taken, number, name = self._files(), 1, f"{stem}{suffix}"
        while name in taken:
            number += 1
            name = f"{stem}-{number}{suffix}"
        return self.folder / name

    def check_room(self, size: int) -> None:
        """Check that `size` more bytes may be written."""
        files = self._files()
        if len(files) >= MOST_FILES or sum(files.values()) + size > MOST_BYTES:
            message = _("the texts in {folder} take the {size} that they may; remove some first")
            raise ApiError(413, message.format(folder=self.folder, size=format_size(MOST_BYTES)), code="no_room")
        existing = next(folder for folder in (self.folder, *self.folder.absolute().parents) if folder.exists())
        if shutil.disk_usage(existing).free - size < SPARE:
            message = _("less than {size} of the disk would stay free; make room")
            raise ApiError(413, message.format(size=format_size(SPARE)), code="no_room")

    def path(self, name: str) -> Path:
        """Return the path of the file that a request names."""
        if "/" in name:
            raise ApiError(400, _("{name!r} is no name of a text").format(name=name[:100]), code="invalid_path")
        return inside(self.folder, name)

    def remove(self, name: str) -> None:
        """Remove a file."""
        path = self.path(name)
        try:
            path.unlink()
        except OSError as error:
            raise system_error(_("cannot remove {path}: {reason}"), name, error) from error

    def _files(self) -> dict[str, int]:
        """Return the names and the sizes of the files."""
        found = (entry for entry in entries(self.folder) if entry.is_file(follow_symlinks=False))
        return {entry.name: entry.stat(follow_symlinks=False).st_size for entry in found}


def data_names(data: str | Sequence[str]) -> str:
    """Return the names of a run's data in one line, those of uploads and of absolute paths without their folder."""
    paths = [Path(path) for path in ([data] if isinstance(data, str) else data)]
    return describe_data(
        [path.name if path.parent.name == FOLDER or path.is_absolute() else str(path) for path in paths]
    )


def _clean(given: str) -> tuple[str, str]:
    """Return a name for a file, with its suffix apart, which must be one of `SUFFIXES`."""
    last = unicodedata.normalize("NFC", given).replace("\\", "/").rpartition("/")[2]
    stem, _dot, suffix = last.rpartition(".")
    suffix = f".{suffix.lower()}"
    if suffix not in SUFFIXES:
        message = _("{name!r} is no text that can be sent; the name must end with {suffixes}")
        raise ApiError(400, message.format(name=last[:100], suffixes=", ".join(SUFFIXES)), "name", "invalid_value")
    kept = "".join(character if is_allowed(f"a{character}") else "_" for character in stem)
    return kept[:_LONGEST].strip(" .-_") or "text", suffix
