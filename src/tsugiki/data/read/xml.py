"""Read the XML documents in files that are zips: EPUB books, Word documents."""

from collections.abc import Collection
from pathlib import Path
from xml.etree import ElementTree

from tsugiki.errors import TsugikiError, error_text
from tsugiki.io.archives import read_zip
from tsugiki.language import _

MAX_SIZE = 64_000_000
"""Bytes that the texts in a file may have together."""


def read_xml(path: Path, name: str, names: Collection[str]) -> ElementTree.Element:
    """Return an XML document in a zip such as a book; `names` are those of its members."""
    if name not in names:
        raise damaged(path, _("{name} is missing in it", name=error_text(name, 80) or "package.opf"))
    content = next(iter(read_zip(path, [name], MAX_SIZE)))[1]
    if b"<!ENTITY" in content:  # entities can grow without limit, and no such document needs them
        raise damaged(path, _("{name} defines entities", name=error_text(name, 80)))
    try:
        return ElementTree.fromstring(content)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise damaged(path, f"{error_text(name, 80)}: {error_text(error, 80)}") from error


def damaged(path: Path, reason: str) -> TsugikiError:
    """Return the error for a file that is a zip, such as a book, and cannot be read."""
    kind = path.suffix.removeprefix(".").upper()
    return TsugikiError(
        "{path} is no readable {kind} file: {reason}; get it again", path=path, kind=kind, reason=reason
    )


def xml_tag(element: ElementTree.Element) -> str:
    """Return the name of an element without its namespace."""
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""
