"""Read the text of Word documents and PDF files, and the tables of Excel workbooks.

A Word document is a zip, in which word/document.xml has the text without running heads, footnotes and comments. It is
read here, because python-docx and mammoth leave out words that have ruby. Workbooks are read with openpyxl, and PDF
files with pypdf, which are imported when they are needed.
"""

import logging
import re
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from datetime import datetime, time
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from rich.cells import cell_len

from tsugiki.data.read.tables import NumberedCells
from tsugiki.data.read.xml import damaged, read_xml, xml_tag
from tsugiki.data.records import Reading
from tsugiki.errors import TsugikiError, error_text
from tsugiki.io.archives import read_zip, zip_members
from tsugiki.language import _

_LARGEST = 1 << 30  # bytes that a workbook may unpack to
EXTRA = "pip install 'tsugiki[documents]'"


def _library(name: str, path: Path) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise TsugikiError("{path}: reading it requires {name}: {extra}", path=path, name=name, extra=EXTRA) from error


def _member_names(path: Path) -> set[str]:
    """Return the names of the members of an Office file: a zip, unless it is encrypted or of before 2007."""
    with path.open("rb") as file:
        if file.read(4) == b"\xd0\xcf\x11\xe0":
            raise TsugikiError(
                "{path} is protected by a password, or has a format of before 2007; save it without", path=path
            )
    return set(zip_members(path))


# Word ----------------------------------------------------------------------------------------------------

_LEFT_OUT = {"rt", "del", "moveFrom", "Fallback"}
"""Readings of ruby, text that was deleted or moved, another form of the same drawing."""
_ENDS = {"p": "\n", "br": "\n", "cr": "\n", "tab": "\t", "noBreakHyphen": "-"}


def docx_text(path: Path) -> str:
    """Return the text of a Word document: a line for each paragraph and each row of a table."""
    try:
        return _word_text(read_xml(path, "word/document.xml", _member_names(path))).strip("\n")
    except RecursionError as error:
        raise damaged(path, _("it is nested too deeply")) from error


def _word_text(element: ElementTree.Element) -> str:
    tag = xml_tag(element)
    if tag in _LEFT_OUT or tag.endswith("Pr"):  # the tab stops of a paragraph's format are no tabs
        return ""
    text = "".join(map(_word_text, element)) if tag != "t" else element.text or ""
    match tag:
        case "tc":
            return text.strip("\n").replace("\n", " ") + "\t"
        case "tr":
            return text.rstrip("\t") + "\n"
    return text + _ENDS.get(tag, "")


# Excel ---------------------------------------------------------------------------------------------------


def sheets(path: Path) -> list[tuple[str, NumberedCells]]:
    """Return the name of each sheet of a workbook, and the number and the texts of its rows; of formulas, the values.

    A row has as many cells as the first one that is not blank.
    """
    openpyxl = _library("openpyxl", path)
    deque(read_zip(path, _member_names(path), _LARGEST), 0)  # refuses what unpacks to an unusual size
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    except Exception as error:  # openpyxl raises what its parsers do
        raise damaged(path, error_text(error, 100)) from error
    return [(sheet.title, _cells(sheet, path)) for sheet in book.worksheets]


def _cells(sheet: Any, path: Path) -> NumberedCells:
    sheet.reset_dimensions()  # some programs write wrong ones
    width = 0
    try:
        for number, row in enumerate(sheet.iter_rows(values_only=True), 1):
            cells = [_cell_text(value) for value in row]
            used = max((place for place, text in enumerate(cells, 1) if text), default=0)
            width = width or used
            yield number, (cells + [""] * width)[: max(width, used)]
    except (ElementTree.ParseError, ValueError, KeyError, TypeError, OSError) as error:
        raise damaged(path, error_text(error, 100)) from error


def _cell_text(value: object) -> str:
    match value:
        case None:
            return ""
        case datetime() if value.time() == time():
            return value.date().isoformat()
        case float() if value.is_integer():
            return str(int(value))
    return str(value)


# PDF -----------------------------------------------------------------------------------------------------

_EDGE = 2  # lines at the top and the bottom of a page that can be running heads and page numbers
_FEWEST = 3  # pages that have the same one
_FULL = 0.8  # of the width of the widest lines; a shorter line ends its paragraph


def pdf_text(path: Path, reading: Reading) -> str:
    """Return the text of a PDF file without running heads and page numbers. Its lines are joined to paragraphs."""
    pypdf = _library("pypdf", path)
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # it prints what it repairs
    try:
        file = pypdf.PdfReader(path)
        if file.is_encrypted and not file.decrypt(""):
            raise TsugikiError("{path} is protected by a password; save it without", path=path)
        pages = [[line.rstrip() for line in page.extract_text().split("\n") if line.strip()] for page in file.pages]
    except TsugikiError:
        raise
    except Exception as error:  # of a damaged file, pypdf raises what its parsers do
        raise TsugikiError("{path} cannot be read: {error}", path=path, error=error_text(error, 100)) from error
    if pages and not any(pages):
        raise TsugikiError("{path} has only pictures of pages; recognise their text first (OCR)", path=path)
    heads = _running_heads(pages)
    lines = [line for page in pages for place, line in enumerate(page) if not _is_head(page, place, heads)]
    message = _(
        "{name}: a PDF file, whose lines are joined to paragraphs; pages without text: {empty}; left out on each page: "
        "{heads}",
        name=path,
        empty=sum(not page for page in pages),
        heads=", ".join(sorted(heads)) or _("nothing"),
    )
    reading.remarks.append(message)
    return "\n".join(_paragraphs(lines))


def _running_heads(pages: Sequence[Sequence[str]]) -> set[str]:
    """Return the lines at the edges of at least a third of the pages, with # for the digits."""
    found = Counter(
        head for page in pages for head in {_without_digits(line) for line in [*page[:_EDGE], *page[-_EDGE:]]}
    )
    return {head for head, count in found.items() if count >= max(_FEWEST, len(pages) / 3)}


def _is_head(page: Sequence[str], place: int, heads: set[str]) -> bool:
    return not _EDGE <= place < len(page) - _EDGE and _without_digits(page[place]) in heads


def _without_digits(line: str) -> str:
    return re.sub(r"\d+", "#", line.strip())


def _paragraphs(lines: Sequence[str]) -> Iterator[str]:
    """Yield paragraphs: a line nearly as wide as the widest ones goes on in the next, unless that is indented."""
    widths = sorted(map(cell_len, lines))
    full = _FULL * widths[9 * len(widths) // 10] if widths else 0
    paragraph = ""
    for line, after in pairwise([*lines, ""]):
        paragraph = _joined(paragraph, line.strip()) if paragraph else line
        if cell_len(line) < full or after[:1] in ("", " ", "\u3000"):
            yield paragraph
            paragraph = ""


def _joined(before: str, line: str) -> str:
    """Return two lines as one: without a hyphen between them, and with a space unless one is in a wide script."""
    if re.search(r"[^\W\d_]-$", before) and line[:1].islower():
        return before[:-1] + line
    return before + ("" if cell_len(before[-1] + line[0]) > 2 else " ") + line
