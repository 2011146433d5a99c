"""Works out of Aozora Bunko: from a mirror folder in its layout or from the site, one at a time.

A source lists its works, from the library's own index (list_person_all_extended_utf8), else from manifest.tsv,
else by walking cards/<person>/files/. `select` narrows the list, `read_entries` fetches and cleans one work after
another, `write_works` makes them JSON lines. `iter_works` is the first two in one call.
"""

import difflib
import io
import json
import logging
import os
import time
import unicodedata
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

from tsugiki.data.aozora import guess_kana, read_work
from tsugiki.data.aozora_index import INDEX, Entry, Kana, read_index, read_manifest
from tsugiki.data.cache import cache_folder
from tsugiki.errors import TsugikiError

if TYPE_CHECKING:
    import httpx2

SITE = "https://www.aozora.gr.jp"


@dataclass(frozen=True)
class Work:
    """One cleaned work; `source` is the path below the mirror or the URL, `unresolved` counts its 〓."""

    title: str
    author: str
    person_id: str
    text: str
    source: str
    kana: Kana
    unresolved: int


@dataclass(frozen=True)
class Query:
    """Which works are wanted: author by full name, title in whole or in part, kana; None takes all."""

    author: str | None = None
    title: str | None = None
    kana: Kana | None = None


class Source(Protocol):
    """A place that holds works."""

    def entries(self) -> list[Entry]:
        """All works, in a fixed order."""

    def locate(self, entry: Entry) -> str:
        """What `Work.source` says."""

    def fetch(self, entry: Entry) -> bytes:
        """The zip. Raises TsugikiError if this one is missing, Unreachable if no other can be had either."""


class Unreachable(TsugikiError):
    """The source is out of reach altogether."""


# Choosing ------------------------------------------------------------------------------------------------


def open_source(source: str, cache: Path | None = None) -> Source:
    """The site behind a URL, or the mirror in a folder.

    Args:
        source: an address such as https://www.aozora.gr.jp, or a folder that contains cards/.
        cache: where a site's files are kept (default: tsugiki/aozora in the user's cache folder).
    """
    if urlsplit(source).scheme in ("http", "https"):
        return Site(source, cache or cache_folder("aozora"))
    return Folder(Path(source))


def select(entries: list[Entry], query: Query) -> list[Entry]:
    """The entries that match as far as they say anything, each path once.

    An author is a person: works that the same person signed with another name are taken too.

    Raises:
        TsugikiError: nothing can match; names near matches for an author.
    """
    chosen = entries
    if query.author is not None and any(entry.author for entry in entries):
        wanted = _plain(query.author)
        persons = {entry.person_id for entry in entries if entry.author and _plain(entry.author) == wanted}
        chosen = [entry for entry in chosen if entry.person_id in persons]
        if not chosen:
            raise _no_author(query.author, {entry.author for entry in entries if entry.author})
    if query.title is not None:
        chosen = [entry for entry in chosen if entry.title is None or _plain(query.title) in _plain(entry.title)]
    if query.kana is not None:
        chosen = [entry for entry in chosen if entry.kana in (None, query.kana)]
    if not chosen:
        raise _nothing(query)
    return list({entry.path: entry for entry in reversed(chosen)}.values())[::-1]


def iter_works(
    source: str,
    author: str | None = None,
    title: str | None = None,
    kana: Kana | None = None,
    cache: Path | None = None,
) -> Iterator[Work]:
    """The wanted works of a site or a mirror folder, one at a time; unreadable ones are logged and left out.

    Args:
        source: an address such as https://www.aozora.gr.jp, or a folder that contains cards/.
        author: full name; spaces and widths do not matter.
        title: the title or a part of it.
        kana: "modern" or "old" orthography.
        cache: where a site's files are kept.

    Raises:
        TsugikiError: no such source, it cannot be reached, or no work is left.
    """
    query = Query(author, title, kana)
    place = open_source(source, cache)
    log = logging.getLogger(__name__)
    return read_entries(place, select(place.entries(), query), query, lambda reason: log.warning("skipped %s", reason))


def read_entries(source: Source, entries: Iterable[Entry], query: Query, skip: Callable[[str], None]) -> Iterator[Work]:
    """Fetch and clean the entries; what their source did not say is matched against the texts themselves.

    Args:
        skip: called with one line for each work that cannot be read.

    Raises:
        TsugikiError: not one work is left.
        Unreachable: a site went away.
    """
    authors: set[str] = set()
    found = skipped = 0
    first = ""
    for entry in entries:
        try:
            work = _read(source, entry)
        except Unreachable:
            raise
        except TsugikiError as error:
            skipped += 1
            first = first or str(error)
            skip(str(error))
            continue
        authors.add(work.author)
        if _wanted(work, entry, query):
            found += 1
            yield work
    if found:
        return
    if skipped and not authors:
        raise TsugikiError(f"no work is left, {skipped} could not be read; the first: {first}")
    if query.author is not None and _plain(query.author) not in map(_plain, authors):
        raise _no_author(query.author, authors)
    raise _nothing(query)


def _read(source: Source, entry: Entry) -> Work:
    name = source.locate(entry)
    clean = read_work(source.fetch(entry), name)
    return Work(
        title=entry.title or clean.title,
        author=entry.author or clean.author,
        person_id=entry.person_id,
        text=clean.text,
        source=name,
        kana=entry.kana or guess_kana(clean.text),
        unresolved=clean.unresolved,
    )


def _wanted(work: Work, entry: Entry, query: Query) -> bool:
    """What `select` could not decide; it has chosen the author already where the entry names one."""
    return (
        (query.author is None or entry.author is not None or _plain(work.author) == _plain(query.author))
        and (query.title is None or _plain(query.title) in _plain(work.title))
        and query.kana in (None, work.kana)
    )


def _plain(name: str) -> str:
    """A name as it is compared: one width, no spaces."""
    return "".join(unicodedata.normalize("NFKC", name).split())


def _no_author(wanted: str, authors: set[str]) -> TsugikiError:
    names = {_plain(author): author for author in sorted(authors)}
    near = difflib.get_close_matches(_plain(wanted), names, n=3, cutoff=0.4)
    advice = f"did you mean {', '.join(names[name] for name in near)}?" if near else "give the full name"
    return TsugikiError(f"no author {wanted} in this source; {advice}")


def _nothing(query: Query) -> TsugikiError:
    given = {"author": query.author, "title": query.title, "kana": query.kana}
    asked = " ".join(f"--{name} {value}" for name, value in given.items() if value)
    return TsugikiError(f"no work matches {asked}; ask for less" if asked else "no works in this source")


# Sources -------------------------------------------------------------------------------------------------


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
        return [Entry(path.as_posix(), path.parts[1]) for path in paths]

    def locate(self, entry: Entry) -> str:
        """The path below the mirror."""
        return entry.path

    def fetch(self, entry: Entry) -> bytes:
        """Read the zip."""
        try:
            return (self.root / entry.path).read_bytes()
        except OSError as error:
            raise TsugikiError(f"{entry.path}: {error.strerror or error}; complete the mirror") from error


class Site:
    """A site in the library's layout, behind a cache, asked politely.

    A file in the cache is never fetched again; the index is, after a week, if the site can be reached.
    """

    def __init__(self, url: str, cache: Path, pause: float = 0.5) -> None:
        """Ask `url` at most once in `pause` seconds, which is also the first wait before asking again."""
        self.url = url.rstrip("/")
        self.cache = cache / self.url.partition("://")[2].replace(":", "_")
        self.pause = pause
        self._next = 0.0
        self._client: httpx2.Client | None = None

    def entries(self) -> list[Entry]:
        """The rows of the site's index."""
        path = f"index_pages/{INDEX}.zip"
        return read_index(self._cached(path, max_age=7 * 86_400), f"{self.url}/{path}")

    def locate(self, entry: Entry) -> str:
        """The URL."""
        return entry.path if "://" in entry.path else f"{self.url}/{entry.path}"

    def fetch(self, entry: Entry) -> bytes:
        """The zip, from the cache if it is there."""
        if "://" in entry.path:
            raise TsugikiError(f"{entry.path}: kept at another site, which this one does not speak for; leave it out")
        return self._cached(entry.path)

    def _cached(self, path: str, max_age: float | None = None) -> bytes:
        kept = self.cache / path
        if kept.is_file() and (max_age is None or time.time() - kept.stat().st_mtime < max_age):
            return kept.read_bytes()
        try:
            data = self._get(f"{self.url}/{path}")
        except Unreachable:
            if kept.is_file():
                return kept.read_bytes()
            raise
        if zipfile.is_zipfile(io.BytesIO(data)):  # what is broken is worth another try next time
            kept.parent.mkdir(parents=True, exist_ok=True)
            _replace(kept, data)
        return data

    def _get(self, url: str, attempts: int = 4) -> bytes:
        import httpx2

        if self._client is None:
            self._client = httpx2.Client(timeout=30, follow_redirects=True, headers={"User-Agent": "tsugiki"})
        for attempt in range(attempts):
            time.sleep(max(0.0, self._next - time.monotonic()))
            problem: TsugikiError
            try:
                response = self._client.get(url)
            except (httpx2.RequestError, httpx2.InvalidURL) as error:
                problem = Unreachable(
                    f"{url}: cannot be reached ({error or type(error).__name__}); check the address and the network, "
                    "then run again: what was fetched is kept"
                )
            else:
                if response.is_success:
                    self._next = time.monotonic() + self.pause
                    return response.content
                problem = TsugikiError(f"{url}: the site answers {response.status_code}; leave it out or try later")
                if response.status_code < 500 and response.status_code != 429:
                    self._next = time.monotonic() + self.pause
                    raise problem
            self._next = time.monotonic() + self.pause * 2**attempt
        raise problem


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
                record = {
                    "title": work.title,
                    "author": work.author,
                    "text": work.text,
                    "source": work.source,
                    "person_id": work.person_id,
                    "kana": work.kana,
                }
                lines.write(json.dumps(record, ensure_ascii=False) + "\n")
                totals = Totals(
                    totals.works + 1,
                    totals.characters + len(work.text),
                    totals.unresolved + work.unresolved,
                )
        os.replace(part, out)
    finally:
        part.unlink(missing_ok=True)
    return totals


def _replace(path: Path, data: bytes) -> None:
    part = path.with_name(path.name + ".part")
    part.write_bytes(data)
    os.replace(part, path)
