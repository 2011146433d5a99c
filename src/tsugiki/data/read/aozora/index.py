"""List the works in Aozora Bunko's index (list_person_all_extended_utf8) or in the manifest.tsv of a mirror, and select
some by author, title, orthography and role.
"""

import csv
import difflib
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from tsugiki.data.read.aozora import Kana
from tsugiki.data.read.aozora.text import Encoding, title_and_author
from tsugiki.data.records import normalise_name
from tsugiki.errors import TsugikiError, error_text, summarise_list, unreadable
from tsugiki.io.archives import read_only_member
from tsugiki.language import JAPANESE, _, language

if TYPE_CHECKING:
    from _csv import Reader

Role = Literal["author", "translator", "editor", "reviser", "other"]

INDEX = "list_person_all_extended_utf8"
_MAX_SIZE = 100_000_000  # bytes; Aozora Bunko's index has about 15 million
_MAX_ROWS = 200_000  # it has about 20,000

ROLES: Mapping[str, Role] = {
    "著者": "author",
    "翻訳者": "translator",
    "編者": "editor",
    "校訂者": "reviser",
    "その他": "other",
}
"""The values of the index's column 役割フラグ."""

_KANA_GUESSES: dict[str, Kana] = {"modern": "modern", "old": "old"}
_ENCODINGS: dict[str, Encoding] = {"ShiftJIS": "shift_jis", "UTF-8": "utf-8"}

# The columns that are used; the index has more.
_WORK, _TITLE, _KANA, _RIGHTS, _PERSON, _FAMILY, _GIVEN, _ROLE, _URL, _ENCODING = _COLUMNS = (
    *("作品ID", "作品名", "文字遣い種別", "作品著作権フラグ", "人物ID", "姓", "名", "役割フラグ"),
    *("テキストファイルURL", "テキストファイル符号化方式"),
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


def read_index(data: bytes, name: str) -> list[IndexEntry]:
    """Read the library's index, a CSV file or a zip of one.

    The index has a row for each person of a work. These rows become one entry, whose origin is the first row.
    """
    if data.lstrip()[:1] == b"<":
        raise TsugikiError("{name}: a web page, not the index; download {index}.zip again", name=name, index=INDEX)
    if data[:2] == b"PK":
        advice = _("download {index}.zip again", index=INDEX)
        member, data = read_only_member(data, name, ".csv", _MAX_SIZE, advice)
        name = f"{name}/{member}"
    works: dict[str, IndexEntry] = {}
    people: dict[str, dict[Person, None]] = {}  # without repetitions, in the order of the rows
    lines = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8-sig", newline="")
    advice = _("this is not Aozora Bunko's index; download {index}.zip again", index=INDEX)
    for row, origin in _rows(csv.reader(lines), name, _COLUMNS, advice):
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


def read_manifest(path: Path) -> list[IndexEntry]:
    """Read a manifest.tsv with the columns path, person_id, author_line, title_line and kana_guess.

    It tells which works a person has written under several names, which the texts do not. Titles are not read from it
    but from the texts, whose headers also contain the subtitles.
    """
    columns = ("path", "person_id", "author_line", "title_line", "kana_guess")
    entries = []
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            table = csv.reader(lines, csv.excel_tab, quoting=csv.QUOTE_NONE)
            for row, origin in _rows(table, str(path), columns, _("this is not a manifest; repair or remove it")):
                author = title_and_author([row["title_line"], row["author_line"]])[1]
                kana = _KANA_GUESSES.get(row["kana_guess"])
                person = Person(row["person_id"], author or None)
                entries.append(IndexEntry(row["path"], (person,), kana=kana, origin=origin))
    except OSError as error:
        raise unreadable(path, error) from error
    return entries


def _rows(table: "Reader", name: str, columns: Sequence[str], advice: str) -> Iterator[tuple[dict[str, str], str]]:
    """Yield each row by column, with its origin: the file and the first line of the row.

    `columns` are those that the table must have; `advice` ends the error messages: what the user can do.
    """
    line = 1
    try:
        header = next(table, [])
        if absent := [column for column in columns if column not in header]:
            raise TsugikiError(
                "{name}: no column {absent}; {advice}", name=name, absent=summarise_list(absent), advice=advice
            )
        line = table.line_num + 1
        for number, cells in enumerate(table, 1):
            if number > _MAX_ROWS:
                raise TsugikiError(
                    "{name}: more than {max_rows:,} rows; {advice}", name=name, max_rows=_MAX_ROWS, advice=advice
                )
            if cells:
                if len(cells) != len(header):
                    raise TsugikiError(
                        "{name}: line {line} has {count} cells instead of {expected}; {advice}",
                        name=name,
                        line=line,
                        count=len(cells),
                        expected=len(header),
                        advice=advice,
                    )
                yield dict(zip(header, cells, strict=True)), _("{name}: line {line}", name=name, line=line)
            line = table.line_num + 1
    except (csv.Error, UnicodeDecodeError) as error:
        raise TsugikiError(
            "{name}: line {line} cannot be read ({error}); {advice}",
            name=name,
            line=line,
            error=error_text(error),
            advice=advice,
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


# Selecting ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Query:
    """The works to select. None matches every work."""

    author: str | None = None
    """A person's full name; spaces and character widths are ignored."""
    title: str | None = None
    """The title or a part of it."""
    kana: Kana | None = None
    role: Role = "author"
    """The role of that person; without `author`, any person of the work must have this role."""


def parse_role(name: str) -> Role:
    """Parse the English name of a role, or its Japanese name in the index."""
    for japanese, role in ROLES.items():
        if name in (japanese, role):
            return role
    known = ", ".join(f"{role} ({japanese})" for japanese, role in ROLES.items())
    raise TsugikiError("--role {name}: unknown role; choose from {known}", name=name, known=known)


def select(entries: list[IndexEntry], query: Query) -> list[IndexEntry]:
    """Select the works in the public domain that can match the query, each path once.

    An entry without a title or an orthography can match every query. Authors are compared by the ids of persons, so
    that works under another name of the same person are selected too. If no entry can match, the error suggests similar
    names of authors.
    """
    chosen = _by_person(entries, query)
    if query.title is not None:
        title = normalise_name(query.title)
        chosen = [entry for entry in chosen if entry.title is None or title in normalise_name(entry.title)]
    if query.kana is not None:
        chosen = [entry for entry in chosen if entry.kana in (None, query.kana)]
    free = [entry for entry in chosen if entry.free]
    if chosen and not free:
        raise TsugikiError("only works under copyright match {options}; they are never used", options=_options(query))
    if not free:
        raise no_work(query)
    first: dict[str, IndexEntry] = {}
    for entry in free:
        first.setdefault(entry.path or entry.origin, entry)
    return list(first.values())


def _by_person(entries: list[IndexEntry], query: Query) -> list[IndexEntry]:
    people = [person for entry in entries for person in entry.people if person.name]
    if query.role != "author" and all(person.role == "author" for person in people):
        raise TsugikiError(
            "--role {role}: this source names only authors; put Aozora Bunko's index into the folder", role=query.role
        )
    if not people:
        return entries
    if query.author is None:
        return [entry for entry in entries if any(person.role == query.role for person in entry.people)]
    ids = {person.id for person in people if normalise_name(person.name or "") == normalise_name(query.author)}
    chosen = [
        entry for entry in entries if any(person.id in ids and person.role == query.role for person in entry.people)
    ]
    if chosen:
        return chosen
    others = sorted({person.role for person in people if person.id in ids})
    if others:
        raise TsugikiError(
            "{author} is not {role} in this source, but {others}; use {flag:role} {other}",
            author=query.author,
            role=query.role,
            others=_(" and ").join(others),
            other=others[0],
        )
    raise no_author(query, {person.name for person in people if person.name and person.role == query.role})


def no_author(query: Query, names: Iterable[str]) -> TsugikiError:
    """Return the error for an author's name that no person in this role has; it suggests similar names."""
    known = {normalise_name(name): name for name in sorted(names)}
    near = difflib.get_close_matches(normalise_name(query.author or ""), known, n=3, cutoff=0.4)
    if near:
        names = ", ".join(known[name] for name in near)
        advice = _("did you mean {names}?", names=names)
    else:
        advice = _("give the full name; Aozora Bunko has authors whose copyright has expired")
    return TsugikiError(
        "no {role} {author} in this source; {advice}", role=_role_name(query.role), author=query.author, advice=advice
    )


def _role_name(role: Role) -> str:
    """Return a role as messages name it: in English, or as the index does."""
    return next((flag for flag, name in ROLES.items() if name == role and language() == JAPANESE), role)


def no_work(query: Query) -> TsugikiError:
    """Return the error for a query that no work matches."""
    options = _options(query)
    if options:
        return TsugikiError("no work matches {options}; remove an option", options=options)
    return TsugikiError("no works in this source")


def _options(query: Query) -> str:
    options = {
        "author": query.author,
        "title": query.title,
        "kana": query.kana,
        "role": query.role if query.role != "author" else None,
    }
    return " ".join(f"--{name} {value}" for name, value in options.items() if value)
