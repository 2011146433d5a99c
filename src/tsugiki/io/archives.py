"""Read and check zips in memory. Nothing is extracted to the disk, so names and links in the zip have no effect."""

import io
import stat
import zipfile
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath
from typing import IO

from tsugiki.errors import TsugikiError, error_text
from tsugiki.io.formatting import format_size
from tsugiki.language import _, marked, ngettext

_MIN_LIMIT = 1 << 22  # bytes that a small zip may unpack to
_MAX_RATIO = 20  # unpacked bytes per packed byte; Japanese texts reach 4, tables 10
# The other methods of a zip cannot be unpacked in parts, so that their size would be known only afterwards.
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# The exceptions that zipfile raises for damaged files.
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError, RuntimeError, ValueError)
_ADVICE = marked("get another one, or unpack it and give the folder")


def read_only_member(data: bytes, name: str, suffix: str, max_size: int, advice: str) -> tuple[str, bytes]:
    """Return the name and the content of the only file in a zip with a suffix such as `.txt`, in any case.

    It must not have more than `max_size` bytes, or 20 times the size of the zip. Error messages name the zip as `name`,
    and end with `advice`.
    """
    with _opened(io.BytesIO(data), name, advice) as archive:
        members = [info.filename for info in archive.infolist() if info.filename.lower().endswith(suffix)]
        if len(members) != 1:
            raise TsugikiError(
                ngettext(
                    "{name}: {count} {suffix} file in the zip, expected one; {advice}",
                    "{name}: {count} {suffix} files in the zip, expected one; {advice}",
                    len(members),
                    name=name,
                    count=len(members),
                    suffix=suffix,
                    advice=advice,
                )
            )
        return next(_read(archive, members, min(max_size, _MAX_RATIO * len(data)), name, advice))


def zip_members(path: Path) -> dict[str, bool]:
    """Return the names of the files in a zip, sorted, and whether each is a symbolic link, which holds a name only.

    Of several files with one name, the last one counts.
    """
    with path.open("rb") as file, _opened(file, str(path), _(_ADVICE)) as archive:
        members = [info for info in archive.infolist() if not info.is_dir()]
    for info in members:
        inside = PureWindowsPath(info.filename)  # recognises both separators, and drives
        if inside.is_absolute() or inside.drive or inside.root or ".." in inside.parts:
            raise TsugikiError(
                "{path}: the name {name} leads out of the zip, so nothing of it is read",
                path=path,
                name=error_text(repr(info.filename), 80),
            )
        if info.flag_bits & 1:
            raise TsugikiError("{path}: the zip is protected by a password; unpack it, and give the folder", path=path)
    return {
        info.filename: stat.S_ISLNK(info.external_attr >> 16) for info in sorted(members, key=lambda one: one.filename)
    }


def read_zip(path: Path, names: Collection[str], max_size: int) -> Iterator[tuple[str, bytes]]:
    """Yield the names and the contents of files in a zip, one at a time; `names` are from `zip_members`.

    Together they must not have more than `max_size` bytes, and 20 times the size of the zip if that is over 4 MB.
    """
    limit = min(max_size, max(_MIN_LIMIT, _MAX_RATIO * path.stat().st_size))
    with path.open("rb") as file, _opened(file, str(path), _(_ADVICE)) as archive:
        yield from _read(archive, names, limit, str(path), _(_ADVICE))


@contextmanager
def _opened(file: IO[bytes], name: str, advice: str) -> Iterator[zipfile.ZipFile]:
    """Open a zip; the error for a damaged one names it, and ends with the advice."""
    try:
        with zipfile.ZipFile(file) as archive:
            yield archive
    except _DAMAGE as error:
        raise TsugikiError(
            "{name}: a damaged zip ({reason}); {advice}", name=name, reason=error_text(error, 100), advice=advice
        ) from error


def _read(
    archive: zipfile.ZipFile, names: Collection[str], limit: int, name: str, advice: str
) -> Iterator[tuple[str, bytes]]:
    """Yield the names and the contents of files in a zip, which must not have more than `limit` bytes together."""
    left = limit
    for member in names:
        if archive.getinfo(member).compress_type not in _METHODS:
            raise TsugikiError("{name}: the zip is packed with an unusual method; {advice}", name=name, advice=advice)
        with archive.open(member) as file:  # the size in the zip's directory may be wrong
            content = file.read(left + 1)
        left -= len(content)
        if left < 0:
            raise TsugikiError(
                "{name}: the zip unpacks to more than {size}; {advice}",
                name=name,
                size=format_size(limit),
                advice=advice,
            )
        yield member, content


def is_whole_zip(data: bytes) -> bool:
    """Return whether the data are a zip whose files match their checksums and do not unpack to an unusual size."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            is_normal = sum(member.file_size for member in members) <= _MAX_RATIO * len(data)
            is_plain = all(member.compress_type in _METHODS for member in members)
            return is_normal and is_plain and archive.testzip() is None
    except _DAMAGE:
        return False
