"""List the works in Aozora Bunko's index (list_person_all_extended_utf8) or in the manifest.tsv of a mirror."""

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal, cast
from urllib.parse import urlsplit

from tsugiki.data.read.aozora import Kana
from tsugiki.data.read.aozora.text import Encoding, title_and_author
from tsugiki.errors import TsugikiError, error_text, summarise_list, unreadable
from tsugiki.io.archives import read_only_member
from tsugiki.language import _

Role = Literal["author", "translator", "editor", "reviser", "other"]

INDEX = "list_person_all_extended_utf8"
_MAX_SIZE = 100_000_000  # bytes; Aozora Bunko's index has about 15 million
_MAX_ROWS = 200_000  # it has about 20,000

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
    """Facts about a work that a source gives before its text is read; None: the source does not give the fact."""

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
    """
    if data.lstrip()[:1] == b"<":
        raise TsugikiError(
            _("{name}: a web page, not the index; download {index}.zip again").format(name=name, index=INDEX)
        )
    if data[:2] == b"PK":
        member, data = read_only_member(
            data, name, ".csv", _MAX_SIZE, _("download {index}.zip again").format(index=INDEX)
        )
        name = f"{name}/{member}"
    works: dict[str, IndexEntry] = {}
    people: dict[str, dict[Person, None]] = {}  # without repetitions, in the order of the rows
    lines = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8-sig", newline="")
    for row, origin in _rows(
        lines,
        csv.excel,
        name,
        _COLUMNS,
        _("this is not Aozora Bunko's index; download {index}.zip again").format(index=INDEX),
    ):
        path = _below_root(row[_URL])
        key = path or row[_WORK]
        known = works.get(key) or IndexEntry(
            path=path,
            title=row[_TITLE],
            kana="old" if "旧仮名" in row[_KANA] else "modern" if "新仮名" in row[_KANA] else None,
            orthography=row[_KANA] or None,
            encoding=_ENCODINGS.get(row[_ENCODING]),
            origin=origin,
        )
        works[key] = replace(known, free=known.free and row[_RIGHTS] == "なし")
        person = Person(row[_PERSON], row[_FAMILY] + row[_GIVEN], ROLES.get(row[_ROLE], "other"))
        people.setdefault(key, {})[person] = None
    return [replace(entry, people=tuple(people[key])) for key, entry in works.items()]


def _rows(
    lines: Iterable[str], dialect: type[csv.Dialect], name: str, columns: Sequence[str], advice: str
) -> Iterator[tuple[dict[str, str], str]]:
    """Yield the named columns of each row, and the row's origin: the file and the first line of the row.

    Other columns are ignored. `advice` ends the error messages: what the user can do.
    """
    table = csv.reader(lines, dialect)
    line = 1
    try:
        header = next(table, [])
        names = set(header)
        if absent := [column for column in columns if column not in names]:
            raise TsugikiError(
                _("{name}: no column {absent}; {advice}").format(
                    name=name, absent=summarise_list(absent), advice=advice
                )
            )
        places = {column: header.index(column) for column in columns}
        line = table.line_num + 1
        for number, cells in enumerate(table, 1):
            if number > _MAX_ROWS:
                raise TsugikiError(
                    _("{name}: more than {max_rows:,} rows; {advice}").format(
                        name=name, max_rows=_MAX_ROWS, advice=advice
                    )
                )
            if cells:
                if len(cells) != len(header):
                    raise TsugikiError(
                        _("{name}: line {line} has {count} cells instead of {expected}; {advice}").format(
                            name=name, line=line, count=len(cells), expected=len(header), advice=advice
                        )
                    )
                yield (
                    {column: cells[place] for column, place in places.items()},
                    _("{name}: line {line}").format(name=name, line=line),
                )
            line = table.line_num + 1
    except (csv.Error, UnicodeDecodeError) as error:
        raise TsugikiError(
            _("{name}: line {line} cannot be read ({error}); {advice}").format(
                name=name, line=line, error=error_text(error), advice=advice
            )
        ) from error


def _below_root(url: str) -> str:
    """Return the path cards/… of a file on the library's own site, or the full URL of any other file."""
    try:
        parts = urlsplit(url)
    except ValueError:  # such as an incomplete IPv6 address
        return url
    path = parts.path.removeprefix("/")
    is_library = parts.hostname in ("www.aozora.gr.jp", "aozora.gr.jp")
    return path if is_library and re.fullmatch(r"cards/\d+/files/[\w.-]+\.zip", path) else url


# A mirror's manifest -------------------------------------------------------------------------------------


def read_manifest(path: Path) -> list[IndexEntry]:
    """Read a manifest.tsv with the columns path, person_id, author_line, title_line and kana_guess.

    Titles are not read from it but from the texts, whose headers also contain the subtitles.
    """
    columns = ("path", "person_id", "author_line", "title_line", "kana_guess")
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            return [
                IndexEntry(
                    path=row["path"],
                    people=(
                        Person(row["person_id"], title_and_author([row["title_line"], row["author_line"]])[1] or None),
                    ),
                    kana=cast(Kana | None, row["kana_guess"] if row["kana_guess"] in ("modern", "old") else None),
                    origin=origin,
                )
                for row, origin in _rows(
                    lines, _Tabs, str(path), columns, _("this is not a manifest; repair or remove it")
                )
            ]
    except OSError as error:
        raise unreadable(path, error) from error


class _Tabs(csv.excel_tab):
    """Cells that are separated by tabs; quotes have no meaning."""

    quoting = csv.QUOTE_NONE
