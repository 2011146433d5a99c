"""What Aozora Bunko holds: its own index (list_person_all_extended_utf8), or a manifest.tsv beside a mirror."""

import csv
import io
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast
from urllib.parse import urlsplit

from tsugiki.data.aozora.text import DAMAGE, Encoding, title_and_author
from tsugiki.errors import TsugikiError

Kana = Literal["modern", "old"]
Role = Literal["author", "translator", "editor", "reviser", "other"]

INDEX = "list_person_all_extended_utf8"

ROLES: dict[str, Role] = {
    "著者": "author",
    "翻訳者": "translator",
    "編者": "editor",
    "校訂者": "reviser",
    "その他": "other",
}
"""The index's 役割フラグ."""

_ENCODINGS: dict[str, Encoding] = {"ShiftJIS": "shift_jis", "UTF-8": "utf-8"}

# The columns that are read; there are many more.
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
    """Someone who has a part in a work; the name is None where only the number is known."""

    id: str
    name: str | None = None
    role: Role = "author"


@dataclass(frozen=True)
class Entry:
    """What a source says of a work before it is read; None where it says nothing.

    `path` is cards/… below a source, a whole URL for what another site keeps, or empty. `origin` says where the
    entry stands (file and line), `orthography` is the index's own word for `kana`, `free` is False under copyright.
    """

    path: str
    people: tuple[Person, ...] = ()
    title: str | None = None
    kana: Kana | None = None
    orthography: str | None = None
    encoding: Encoding | None = None
    origin: str = ""
    free: bool = True

    def names(self, role: Role) -> str | None:
        """Everyone in that role, as in 山田一、川田二葉; None where nobody is known."""
        return "、".join(person.name for person in self.people if person.role == role and person.name) or None


class Missing(TsugikiError):
    """The file that an entry names is not there."""


# The library's index -------------------------------------------------------------------------------------


def read_index(data: bytes, name: str) -> list[Entry]:
    """The works in the library's index, a CSV file or a zip of one: one entry a work, with all its people.

    The index has a row for each person in a work; the first of them is the entry's line.

    Args:
        data: the file's bytes.
        name: what messages call it.

    Raises:
        TsugikiError: not such an index; the message names the line.
    """
    if data.lstrip()[:1] == b"<":
        raise TsugikiError(f"{name}: a web page, not the index; fetch {INDEX}.zip again")
    if data[:2] == b"PK":
        data, name = _unzip(data, name)
    works: dict[str, Entry] = {}
    for row, origin in _rows(data, name):
        path = _below_root(row[_URL])
        known = works.setdefault(
            path or row[_WORK],
            Entry(
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
                raise TsugikiError(f"{name}: {len(tables)} CSV files in the zip, expected one; fetch {INDEX}.zip again")
            return archive.read(tables[0]), f"{name}/{tables[0]}"
    except DAMAGE as error:
        raise TsugikiError(f"{name}: a broken zip ({error}); fetch it again") from error


def _rows(data: bytes, name: str) -> Iterator[tuple[dict[str, str], str]]:
    """Each row by its columns, and where it begins: a cell may go over several lines."""
    try:
        table = csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""))
    except UnicodeDecodeError as error:
        raise TsugikiError(f"{name}: not UTF-8 ({error}); fetch {INDEX}.zip again") from error
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
        raise TsugikiError(f"{name}: line {line}: not a row of the index ({error}); fetch the index again") from error


def _below_root(url: str) -> str:
    """cards/… for what the library keeps itself, the whole URL for the rest."""
    parts = urlsplit(url)
    path = parts.path.removeprefix("/")
    own = parts.hostname in ("www.aozora.gr.jp", "aozora.gr.jp")
    return path if own and re.fullmatch(r"cards/\d+/files/[\w.-]+\.zip", path) else url


# A mirror's manifest -------------------------------------------------------------------------------------


def read_manifest(path: Path) -> list[Entry]:
    """Entries of a manifest.tsv: path, person_id, author_line, title_line, kana_guess.

    Titles are left to the texts, whose headers also have the subtitles.

    Raises:
        TsugikiError: not such a file; the message names the line.
    """
    with path.open(encoding="utf-8", newline="") as lines:
        rows = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        try:
            return [
                Entry(
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
