"""List the works in Aozora Bunko's index (list_person_all_extended_utf8) or in the manifest.tsv of a mirror."""

import csv
import io
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal, cast
from urllib.parse import urlsplit

from tsugiki.data.aozora.text import DAMAGE, Encoding, title_and_author
from tsugiki.errors import TsugikiError

Kana = Literal["modern", "old"]
Role = Literal["author", "translator", "editor", "reviser", "other"]

INDEX = "list_person_all_extended_utf8"

ROLES: Mapping[str, Role] = MappingProxyType(
    {"著者": "author", "翻訳者": "translator", "編者": "editor", "校訂者": "reviser", "その他": "other"}
)
"""The values of the index's column 役割フラグ."""

_ENCODINGS: dict[str, Encoding] = {"ShiftJIS": "shift_jis", "UTF-8": "utf-8"}

# The columns that are used; the index has more.
_WORK, _TITLE, _KANA, _RIGHTS, _PERSON, _FAMILY, _GIVEN, _ROLE, _URL, _ENCODING = _COLUMNS = (
    "作品ID",
    "作品名",
    "文字遣い種別",
    "作品著作権フラグ",
    "人物ID",
    "姓",
    "名",
    "役割フラグ",
    "テキストファイルURL",
    "テキストファイル符号化方式",
)


@dataclass(frozen=True)
class Person:
    """A person who contributed to a work; the name is None if only the id is known."""

    id: str
    name: str | None = None
    role: Role = "author"


@dataclass(frozen=True)
class IndexEntry:
    """What a source tells about a work before its text is read; None for what it does not tell."""

    path: str
    """cards/… relative to the source, a full URL if the text is at another site, or empty if there is no text."""
    people: tuple[Person, ...] = ()
    title: str | None = None
    kana: Kana | None = None
    orthography: str | None = None
    """The index's 文字遣い種別, such as 新字新仮名."""
    encoding: Encoding | None = None
    origin: str = ""
    """File and line of the entry, for messages."""
    free: bool = True
    """Whether the work is in the public domain."""

    def names(self, role: Role) -> str | None:
        """Return the names of all people in this role, such as 山田一、川田二葉; None if there are none."""
        return "、".join(person.name for person in self.people if person.role == role and person.name) or None


class FileMissing(TsugikiError):
    """The file of an entry does not exist."""


# The library's index -------------------------------------------------------------------------------------


def read_index(data: bytes, name: str) -> list[IndexEntry]:
    """Read the library's index, a CSV file or a zip of one.

    The index has a row for each person of a work. These rows become one entry, whose origin is the first row.

    Raises:
        TsugikiError: the file is not such an index; the message names the line.
    """
    if data.lstrip()[:1] == b"<":
        raise TsugikiError(f"{name}: a web page, not the index; download {INDEX}.zip again")
    if data[:2] == b"PK":
        data, name = _unzip(data, name)
    works: dict[str, IndexEntry] = {}
    for row, origin in _rows(data, name):
        path = _below_root(row[_URL])
        known = works.setdefault(
            path or row[_WORK],
            IndexEntry(
                path=path,
                title=row[_TITLE],
                kana="old" if "旧仮名" in row[_KANA] else "modern" if "新仮名" in row[_KANA] else None,
                orthography=row[_KANA] or None,
                encoding=_ENCODINGS.get(row[_ENCODING]),
                origin=origin,
            ),
        )
        person = Person(row[_PERSON], row[_FAMILY] + row[_GIVEN], ROLES.get(row[_ROLE], "other"))
        works[path or row[_WORK]] = replace(
            known,
            people=known.people if person in known.people else (*known.people, person),
            free=known.free and row[_RIGHTS] == "なし",
        )
    return list(works.values())


def _unzip(data: bytes, name: str) -> tuple[bytes, str]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            tables = [member for member in archive.namelist() if member.lower().endswith(".csv")]
            if len(tables) != 1:
                raise TsugikiError(
                    f"{name}: {len(tables)} CSV files in the zip, expected one; download {INDEX}.zip again"
                )
            return archive.read(tables[0]), f"{name}/{tables[0]}"
    except DAMAGE as error:
        raise TsugikiError(f"{name}: a damaged zip ({error}); download it again") from error


def _rows(data: bytes, name: str) -> Iterator[tuple[dict[str, str], str]]:
    """Yield each row as a mapping of its columns, and its first line; a cell can span several lines."""
    try:
        table = csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""))
    except UnicodeDecodeError as error:
        raise TsugikiError(f"{name}: not UTF-8 ({error}); download {INDEX}.zip again") from error
    line = 1
    try:
        header = next(table, [])
        absent = [column for column in _COLUMNS if column not in header]
        if absent:
            raise TsugikiError(f"{name}: no column {'、'.join(absent)}; expected Aozora Bunko's {INDEX}")
        line = table.line_num + 1
        for cells in table:
            if cells:
                yield dict(zip(header, cells, strict=True)), f"{name}: line {line}"
            line = table.line_num + 1
    except (csv.Error, ValueError) as error:
        raise TsugikiError(
            f"{name}: line {line}: not a row of the index ({error}); download the index again"
        ) from error


def _below_root(url: str) -> str:
    """Return the path cards/… of a file on the library's own site, or the full URL of any other file."""
    parts = urlsplit(url)
    path = parts.path.removeprefix("/")
    is_library = parts.hostname in ("www.aozora.gr.jp", "aozora.gr.jp")
    return path if is_library and re.fullmatch(r"cards/\d+/files/[\w.-]+\.zip", path) else url


# A mirror's manifest -------------------------------------------------------------------------------------


def read_manifest(path: Path) -> list[IndexEntry]:
    """Read a manifest.tsv with the columns path, person_id, author_line, title_line and kana_guess.

    The titles are not taken from it but from the texts, whose headers also contain the subtitles.

    Raises:
        TsugikiError: the file is not such a manifest; the message names the line.
    """
    with path.open(encoding="utf-8", newline="") as lines:
        rows = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        try:
            return [
                IndexEntry(
                    path=row["path"],
                    people=(
                        Person(row["person_id"], title_and_author([row["title_line"], row["author_line"]])[1] or None),
                    ),
                    kana=cast(Kana | None, row["kana_guess"] if row["kana_guess"] in ("modern", "old") else None),
                    origin=f"{path}: line {rows.line_num}",
                )
                for row in rows
            ]
        except (KeyError, TypeError, UnicodeDecodeError) as error:
            raise TsugikiError(
                f"{path}: line {rows.line_num}: not a manifest ({error}); repair or remove it"
            ) from error
