"""Works out of Aozora Bunko: from a mirror folder in its layout or from the site, one at a time.

A source lists its works, from the library's own index (list_person_all_extended_utf8), else from manifest.tsv,
else by walking cards/<person>/files/. `select` narrows the list, `read_entries` fetches and cleans one work after
another, `write_works` makes them JSON lines. `iter_works` is the first two in one call.
"""

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from tsugiki.data.aozora.index import INDEX, Entry, Kana, Missing, Person, Role, read_index, read_manifest
from tsugiki.data.aozora.query import Query, no_author, nothing, plain, select
from tsugiki.data.aozora.site import Site, Unreachable
from tsugiki.data.aozora.text import guess_kana, read_work
from tsugiki.errors import TsugikiError
from tsugiki.io.cache import cache_folder


@dataclass(frozen=True)
class Work:
    """One cleaned work.

    `source` is the path below the mirror or the URL, `unresolved` counts its 〓. Several authors or translators stand
    in one string, as in 山田一、川田二葉, with the first author's number; `orthography` is the index's 文字遣い種別.
    """

    title: str
    author: str
    person_id: str
    text: str
    source: str
    kana: Kana
    unresolved: int
    translator: str | None = None
    orthography: str | None = None


class Source(Protocol):
    """A place that holds works."""

    def entries(self) -> list[Entry]:
        """All works, in a fixed order."""

    def locate(self, entry: Entry) -> str:
        """What `Work.source` says."""

    def fetch(self, entry: Entry) -> bytes:
        """The zip. Raises Missing if it is not there, Unreachable if nothing can be had."""


class Folder:
    """A mirror in the layout cards/<person>/files/*.zip, with the library's index, manifest.tsv, or neither."""

    def __init__(self, root: Path) -> None:
        if not (root / "cards").is_dir():
            raise TsugikiError(f"{root}: no folder cards/ in it; give the folder that contains cards/, or a site's URL")
        self.root = root

    def entries(self) -> list[Entry]:
        """From the index, else from the manifest, else every zip below cards/ in sorted order."""
        for name in (f"{INDEX}.csv", f"{INDEX}.zip"):
            for path in (self.root / name, self.root / "index_pages" / name):
                if path.is_file():
                    return read_index(path.read_bytes(), str(path))
        manifest = self.root / "manifest.tsv"
        if manifest.is_file():
            return read_manifest(manifest)
        paths = sorted(path.relative_to(self.root) for path in self.root.glob("cards/*/files/*.zip"))
        return [Entry(path.as_posix(), (Person(path.parts[1]),)) for path in paths]

    def locate(self, entry: Entry) -> str:
        """The path below the mirror."""
        return entry.path

    def fetch(self, entry: Entry) -> bytes:
        """Read the zip. Raises Missing if it is not there."""
        try:
            return (self.root / entry.path).read_bytes()
        except FileNotFoundError as error:
            raise Missing(f"{self.root / entry.path}: no such file; complete the mirror") from error
        except OSError as error:
            raise TsugikiError(f"{entry.path}: {error.strerror or error}; make it readable") from error


def open_source(source: str, cache: Path | None = None) -> Source:
    """The site behind a URL, or the mirror in a folder.

    Args:
        source: an address such as https://www.aozora.gr.jp, or a folder that contains cards/.
        cache: where a site's files are kept (default: tsugiki/aozora in the user's cache folder).
    """
    if urlsplit(source).scheme in ("http", "https"):
        return Site(source, cache or cache_folder("aozora"))
    return Folder(Path(source))


# Reading -------------------------------------------------------------------------------------------------


def iter_works(
    source: str,
    author: str | None = None,
    title: str | None = None,
    kana: Kana | None = None,
    cache: Path | None = None,
    role: Role = "author",
) -> Iterator[Work]:
    """The wanted works of a site or a mirror folder, one at a time; unreadable ones are logged and left out.

    Args:
        source: an address such as https://www.aozora.gr.jp, or a folder that contains cards/.
        author: full name; spaces and widths do not matter.
        title: the title or a part of it.
        kana: "modern" or "old" orthography.
        cache: where a site's files are kept.
        role: what `author`, or anyone where no name is given, did in the work.

    Raises:
        TsugikiError: no such source, it cannot be reached, a file that it lists is not there, or no work is left.
    """
    query = Query(author, title, kana, role)
    place = open_source(source, cache)
    log = logging.getLogger(__name__)
    return read_entries(place, select(place.entries(), query), query, lambda reason: log.warning("skipped %s", reason))


def read_entries(
    source: Source,
    entries: Iterable[Entry],
    query: Query,
    skip: Callable[[str], None],
    missing: Callable[[str], None] | None = None,
) -> Iterator[Work]:
    """Fetch and clean the entries; what their source did not say is matched against the texts themselves.

    Args:
        source: where the entries come from.
        entries: those that `select` has left.
        query: what it was asked.
        skip: called with one line for each work that cannot be read.
        missing: called with one line for each work whose file is not there; None makes that an error.

    Raises:
        TsugikiError: a file is not there (without `missing`), or not one work is left.
        Unreachable: a site went away.
    """
    authors: set[str] = set()
    found = lost = 0
    first = ""
    for entry in entries:
        try:
            work = _read(source, entry)
        except Unreachable:
            raise
        except Missing as error:
            reason = f"{entry.origin}: {error}" if entry.origin else str(error)
            if missing is None:
                raise TsugikiError(f"{reason}, or leave such works out with --skip-missing") from error
            missing(reason)
        except TsugikiError as error:
            reason = str(error)
            skip(reason)
        else:
            authors.add(work.author)
            if _wanted(work, entry, query):
                found += 1
                yield work
            continue
        lost += 1
        first = first or reason
    if found:
        return
    if lost and not authors:
        raise TsugikiError(f"no work is left, {lost} could not be read; the first: {first}")
    if query.author is not None and plain(query.author) not in map(plain, authors):
        raise no_author(query, authors)
    raise nothing(query)


def _read(source: Source, entry: Entry) -> Work:
    if not entry.path:
        raise TsugikiError(f"{entry.origin}: {entry.title} has no text file, so it is left out")
    if "://" in entry.path:
        raise TsugikiError(f"{entry.origin}: {entry.path} is kept at another site, so it is left out")
    name = source.locate(entry)
    clean = read_work(source.fetch(entry), name, entry.encoding)
    author = next((person for person in entry.people if person.role == "author"), entry.people[0])
    return Work(
        title=entry.title or clean.title,
        author=entry.names("author") or clean.author,
        person_id=author.id,
        text=clean.text,
        source=name,
        kana=entry.kana or guess_kana(clean.text),
        unresolved=clean.unresolved,
        translator=entry.names("translator"),
        orthography=entry.orthography,
    )


def _wanted(work: Work, entry: Entry, query: Query) -> bool:
    """What `select` could not decide; it has chosen the person already where the entry names any."""
    named = any(person.name for person in entry.people)
    return (
        (query.author is None or named or plain(work.author) == plain(query.author))
        and (query.title is None or plain(query.title) in plain(work.title))
        and query.kana in (None, work.kana)
    )


# Writing -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Totals:
    """What went into a file."""

    works: int = 0
    characters: int = 0
    unresolved: int = 0


def check_target(out: Path) -> None:
    """Refuse an existing file and a folder that is not there, before any work is done."""
    if out.exists():
        raise TsugikiError(f"{out}: exists already; choose another --out, or delete it first")
    if not out.parent.is_dir():
        raise TsugikiError(f"{out}: no folder {out.parent}; make it first")


def write_works(works: Iterable[Work], out: Path) -> Totals:
    """One JSON object a line and work; `out` appears when the last one is written, never in part."""
    check_target(out)
    totals = Totals()
    part = out.with_name(out.name + ".part")
    try:
        with part.open("w", encoding="utf-8", newline="\n") as lines:
            for work in works:
                lines.write(json.dumps(_record(work), ensure_ascii=False) + "\n")
                totals = Totals(
                    totals.works + 1,
                    totals.characters + len(work.text),
                    totals.unresolved + work.unresolved,
                )
        os.replace(part, out)
    finally:
        part.unlink(missing_ok=True)
    return totals


def _record(work: Work) -> dict[str, str]:
    """What a line says; translator and orthography only where they are known."""
    return {
        "title": work.title,
        "author": work.author,
        **({"translator": work.translator} if work.translator else {}),
        "text": work.text,
        "source": work.source,
        "person_id": work.person_id,
        "kana": work.kana,
        **({"orthography": work.orthography} if work.orthography else {}),
    }
