"""Read the text of an EPUB file.

An EPUB file is a zip. META-INF/container.xml names the package file, which names the book's title and author, its
chapters (XHTML) and their order (the spine). Only the standard library is used.
"""

import posixpath
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote
from xml.etree import ElementTree

from tsugiki.data.read.html import html_text
from tsugiki.data.read.xml import MAX_SIZE, damaged, read_xml, xml_tag
from tsugiki.errors import TsugikiError, error_text
from tsugiki.io.archives import read_zip, zip_members
from tsugiki.language import _

_CONTAINER = "META-INF/container.xml"
_RIGHTS = ("META-INF/rights.xml", "META-INF/sinf.xml")  # Adobe's and Apple's DRM
_ENCRYPTION = "META-INF/encryption.xml"
# Fonts are obfuscated by these two, without a key; anything else in encryption.xml is DRM.
_FONT_METHODS = {"http://www.idpf.org/2008/embedding", "http://ns.adobe.com/pdf/enc#RC"}
_CHAPTER_TYPES = {"application/xhtml+xml", "text/html"}


class Book(NamedTuple):
    """The text of an EPUB file."""

    title: str
    author: str
    text: str


def read_epub(path: Path) -> Book:
    """Read the title, the author and the text of a book."""
    names = set(zip_members(path))
    _refuse_drm(path, names)
    container = read_xml(path, _CONTAINER, names)
    rootfiles = (element for element in container.iter() if xml_tag(element) == "rootfile")
    package_name = next((element.get("full-path", "") for element in rootfiles), "")
    package = read_xml(path, package_name, names)
    chapters = list(dict.fromkeys(_chapters(package, posixpath.dirname(package_name))))  # each once, as EPUB requires
    missing = next((name for name in chapters if name not in names), None)
    if missing is not None:
        raise damaged(path, _("{name} is missing in it", name=error_text(missing, 80)))
    texts = [html_text(_decode(content, path)) for _name, content in read_zip(path, chapters, MAX_SIZE)]
    authors = dict.fromkeys(_metadata(package, "creator"))
    title = next(iter(_metadata(package, "title")), "")
    return Book(title, "、".join(authors), "\n\n".join(text for text in texts if text))


def _refuse_drm(path: Path, names: Collection[str]) -> None:
    protected = any(name in names for name in _RIGHTS)
    if not protected and _ENCRYPTION in names:
        encryption = read_xml(path, _ENCRYPTION, names).iter()
        methods = {element.get("Algorithm", "") for element in encryption if xml_tag(element) == "EncryptionMethod"}
        protected = not methods <= _FONT_METHODS
    if protected:
        raise TsugikiError("{path} is protected by DRM, so its text cannot be read; use a file without DRM", path=path)


def _metadata(package: ElementTree.Element, name: str) -> Iterator[str]:
    for element in package.iter():
        text = " ".join((element.text or "").split())
        if xml_tag(element) == name and text:
            yield text


def _chapters(package: ElementTree.Element, folder: str) -> Iterator[str]:
    """Yield the names of the chapters in the zip, in the order of reading, without the table of contents."""
    items: Mapping[str, ElementTree.Element] = {
        element.get("id", ""): element for element in package.iter() if xml_tag(element) == "item"
    }
    for reference in package.iter():
        if xml_tag(reference) != "itemref" or reference.get("linear") == "no":
            continue
        item = items.get(reference.get("idref", ""))
        if item is None or item.get("media-type") not in _CHAPTER_TYPES or "nav" in item.get("properties", "").split():
            continue
        yield posixpath.normpath(posixpath.join(folder, unquote(item.get("href", "").partition("#")[0])))


def _decode(content: bytes, path: Path) -> str:
    for encoding in ("utf-8-sig", "utf-16"):  # the encodings that EPUB allows
        try:
            return content.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise damaged(path, _("a chapter is not text in UTF-8 or UTF-16"))
