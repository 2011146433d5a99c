"""Read and check zips in memory. Nothing is extracted to the disk, so names and links in the zip have no effect."""

import io
import zipfile
import zlib

from tsugiki.errors import TsugikiError, error_text
from tsugiki.io.formatting import format_size

_MAX_RATIO = 20  # unpacked bytes per packed byte; Japanese texts reach 4, tables 10
# The other methods of a zip cannot be unpacked in parts, so that their size would be known only afterwards.
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# The exceptions that zipfile raises for damaged files.
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError, RuntimeError, ValueError)


def read_only_member(data: bytes, name: str, suffix: str, max_size: int, advice: str) -> tuple[str, bytes]:
    """Read the only file with a suffix from a zip.

    Args:
        data: the zip.
        name: the name of the zip, for errors.
        suffix: the end of the file's name, such as `.txt`, in any case.
        max_size: the largest size of the file in bytes.
        advice: the end of the errors: what the user can do.

    Returns:
        The file's name in the zip, and its content.

    Raises:
        TsugikiError: the zip is damaged, contains no such file or several, or unpacks to more than `max_size` or
            more than 20 times its own size.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [info for info in archive.infolist() if info.filename.lower().endswith(suffix)]
            if len(members) != 1:
                raise TsugikiError(f"{name}: {len(members)} {suffix} files in the zip, expected one; {advice}")
            member = members[0]
            if member.compress_type not in _METHODS:
                raise TsugikiError(f"{name}: the zip is packed with an unusual method; {advice}")
            # The size in the zip's directory may be wrong, so it is limited while the file is unpacked.
            limit = min(max_size, _MAX_RATIO * len(data))
            with archive.open(member) as file:
                content = file.read(limit + 1)
    except _DAMAGE as error:
        raise TsugikiError(f"{name}: a damaged zip ({error_text(error)}); {advice}") from error
    if len(content) > limit:
        raise TsugikiError(f"{name}: the zip unpacks to more than {format_size(limit)}; {advice}")
    return member.filename, content


def is_whole_zip(data: bytes) -> bool:
    """Whether the data are a zip of normal size, whose files have the checksums in its directory."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            is_normal = sum(member.file_size for member in members) <= _MAX_RATIO * len(data)
            is_plain = all(member.compress_type in _METHODS for member in members)
            return is_normal and is_plain and archive.testzip() is None
    except _DAMAGE:
        return False
