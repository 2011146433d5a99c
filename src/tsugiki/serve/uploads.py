"""OpenAI's files: texts in a folder of the library, with limits for a file, for all files and for the free disk space.

A request names a file by its id or its name, and never a path. The name that a client gives is changed into one that
every system accepts, and ends with one of the suffixes of data, so that no file is a template or code; nothing reads a
config from this folder. Nothing is unpacked here: the reader of texts does that in a process of its own, and refuses a
zip that unpacks to an unusual size.
"""

import asyncio
import os
import shutil
import unicodedata
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from tsugiki.data.read.files import describe_data
from tsugiki.errors import system_error
from tsugiki.io.atomic import make_folder, new_file
from tsugiki.io.digests import sha256
from tsugiki.io.file_names import DATA_SUFFIXES
from tsugiki.io.formatting import format_size
from tsugiki.language import _
from tsugiki.serve.errors import ApiError, invalid
from tsugiki.serve.folders import entries, inside, is_allowed
from tsugiki.serve.protocol import read_body

FOLDER = ".texts"
"""The folder in the library; no adapter's name can begin with a dot."""
LARGEST = 64_000_000  # bytes of a file
MOST_BYTES = 1_000_000_000  # of all files
MOST_FILES = 500
SPARE = 256_000_000  # bytes of the disk that stay free
PURPOSE = "fine-tune"
_AROUND = 10_000  # bytes of a form around its file
_PART = 1 << 18  # bytes of a form that are read at once
_SECONDS = 600  # the longest time in which a file may arrive
_LONGEST = 60  # characters of a name without its suffix


class Uploads:
    """The folder of uploaded texts. One file is received at a time, because it is held in memory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._receiving = asyncio.Lock()

    def objects(self) -> list[dict[str, Any]]:
        """Return the files as OpenAI's API describes them, the newest first."""
        newest = sorted(self._files().items(), key=lambda one: -one[1].st_mtime)
        return [file_object(file_id(name), name, state.st_size, int(state.st_mtime)) for name, state in newest]

    def find(self, given: str, param: str = "file_id", status: int = 404) -> dict[str, Any]:
        """Return the file with the id that a request has in the field `param`; `status` is that of the error."""
        for one in self.objects():
            if one["id"] == given:
                return one
        raise ApiError(status, _("there is no file {name!r}", name=given[:100]), param, "not_found")

    async def receive(self, request: Request) -> dict[str, Any]:
        """Write the file of a form, and return it as `objects` does; an equal file if there is one."""
        async with self._receiving:
            await asyncio.to_thread(self.check_room, 0)
            purpose, file = await _read_form(request)
            if purpose != PURPOSE:
                raise invalid(
                    _("files with the purpose {purpose!r} are kept here, and no others", purpose=PURPOSE), "purpose"
                )
            name = await asyncio.to_thread(self.put, file.filename or "", await file.read())
        return await asyncio.to_thread(self.find, file_id(name))

    def put(self, name: str, content: bytes) -> str:
        """Write a file, unless there is one of this kind with this content; return the file's name."""
        path = self.new_path(name)
        if not content:
            raise invalid(_("{name!r} is empty", name=name[:100]), "file")
        similar = (
            self.folder / one
            for one, state in self._files().items()
            if (state.st_size, Path(one).suffix) == (len(content), path.suffix)
        )
        if known := next((path.name for path in similar if path.read_bytes() == content), None):
            return known
        self.check_room(len(content))
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
        sizes = [state.st_size for state in self._files().values()]
        if len(sizes) >= MOST_FILES or sum(sizes) + size > MOST_BYTES:
            message = _(
                "the texts in {folder} take the {size} that they may; remove some first",
                folder=self.folder,
                size=format_size(MOST_BYTES),
            )
            raise ApiError(413, message, code="no_room")
        existing = next(folder for folder in (self.folder, *self.folder.absolute().parents) if folder.exists())
        if shutil.disk_usage(existing).free - size < SPARE:
            raise ApiError(
                413,
                _("less than {size} of the disk would stay free; make room", size=format_size(SPARE)),
                code="no_room",
            )

    def path(self, name: str) -> Path:
        """Return the path of the file that a request names."""
        if "/" in name:
            raise ApiError(400, _("{name!r} is no name of a text", name=name[:100]), code="invalid_path")
        return inside(self.folder, name)

    def remove(self, name: str) -> None:
        """Remove a file."""
        path = self.path(name)
        try:
            path.unlink()
        except OSError as error:
            raise system_error(_("cannot remove {path}: {reason}"), name, error) from error

    def _files(self) -> dict[str, os.stat_result]:
        """Return the names of the files, with their sizes and times."""
        found = (entry for entry in entries(self.folder) if entry.is_file(follow_symlinks=False))
        return {entry.name: entry.stat(follow_symlinks=False) for entry in found}


def file_object(given: str, name: str, size: int, created_at: int, purpose: str = PURPOSE) -> dict[str, Any]:
    """Return a file, whose id is `given`, as OpenAI's API describes it."""
    known = {"id": given, "filename": name, "bytes": size, "created_at": created_at, "purpose": purpose}
    return {"object": "file", "status": "processed", **known}


def file_id(name: str) -> str:
    """Return the id of the file with a name; another file can get it only when this one was removed."""
    return short_id("file", name)


def short_id(kind: str, name: str) -> str:
    """Return an id such as `file-1f3c…`, which is always the same for the same name."""
    return f"{kind}-{sha256([name.encode()]).partition(':')[2][:24]}"


async def _read_form(request: Request) -> tuple[str, UploadFile]:
    """Return the purpose and the file in a form, as clients send them."""
    body = await read_body(request, LARGEST + _AROUND, _SECONDS)

    async def parts() -> AsyncGenerator[bytes, None]:
        for begin in range(0, len(body), _PART):
            yield body[begin : begin + _PART]
            await asyncio.sleep(0)  # streams of answers go on meanwhile

    try:
        form = await _Parser(request.headers, parts(), max_files=1, max_fields=10).parse()
    except MultiPartException as error:
        message = _("the body is no form with a file: {reason}", reason=error.message)
        raise ApiError(400, message) from error
    purpose, file = form.get("purpose"), form.get("file")
    if not isinstance(file, UploadFile):
        raise invalid(_("the form has no file"), "file")
    return str(purpose), file


class _Parser(MultiPartParser):
    """Reads a form without a file on the disk, where there may be no room."""

    spool_max_size = LARGEST


def data_names(data: str | Sequence[str]) -> str:
    """Return the names of a run's data in one line, those of uploads and of absolute paths without their folder."""
    paths = [Path(path) for path in ([data] if isinstance(data, str) else data)]
    return describe_data(
        [path.name if path.parent.name == FOLDER or path.is_absolute() else str(path) for path in paths]
    )


def _clean(given: str) -> tuple[str, str]:
    """Return a name for a file, with its suffix apart, which must be one of `DATA_SUFFIXES`."""
    last = unicodedata.normalize("NFC", given).replace("\\", "/").rpartition("/")[2]
    if "." not in last:  # clients call bytes without a name "upload"
        last += ".jsonl"
    stem, _dot, suffix = last.rpartition(".")
    suffix = f".{suffix.lower()}"
    if suffix not in DATA_SUFFIXES:
        message = _(
            "{name!r} is no text that can be sent; the name must end with {suffixes}",
            name=last[:100],
            suffixes=", ".join(DATA_SUFFIXES),
        )
        raise invalid(message, "file")
    return clean_stem(stem), suffix


def clean_stem(text: str) -> str:
    """Return a text as a name without a suffix that every system accepts."""
    kept = "".join(character if is_allowed(f"a{character}") else "_" for character in text)
    return kept[:_LONGEST].strip(" .-_") or "text"
