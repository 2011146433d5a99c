"""Read works of Aozora Bunko from its site or from a mirror folder, one at a time, and write them as JSON lines.

A source lists its works, from the library's index (list_person_all_extended_utf8), a manifest.tsv, or the files in it.
`select` chooses from this list, `read_entries` downloads and cleans the chosen works, and `write_works` writes them.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import urlsplit

from tsugiki.data.read.aozora import Kana
from tsugiki.data.read.aozora.index import (
    INDEX,
    FileMissing,
    IndexEntry,
    Person,
    Query,
    no_author,
    no_work,
    read_index,
    read_manifest,
)
from tsugiki.data.read.aozora.site import MAX_ZIP, Site, SiteUnreachable
from tsugiki.data.read.aozora.text import guess_kana, read_text_file, read_work
from tsugiki.data.records import normalise_name
from tsugiki.errors import TsugikiError, error_text, summarise_list, unreadable
from tsugiki.io.atomic import new_file
from tsugiki.io.cache import cache_folder
from tsugiki.io.formatting import format_size
from tsugiki.io.json import to_lines

if TYPE_CHECKING:
    from tsugiki.data.duplicates import Signature

_LONGEST_REASON = 500  # characters
_SHORTEST_COPY = 100  # characters; shorter texts, such as two haiku with a common line, are easily similar


@dataclass(frozen=True)
class Work:
    """A work with its clean text."""

    title: str
    author: str
    """Several authors are joined, as in 山田一、川田二葉."""
    person_id: str
    """The id of the first author."""
    text: str
    source: str
    """The path in the mirror, or the URL."""
    kana: Kana
    unresolved: int
    """Number of characters that became 〓 because they have no code point."""
    translator: str | None = None
    """Several translators are joined like authors."""
    orthography: str | None = None
    """The index's 文字遣い種別, such as 新字新仮名."""


class MirrorFolder:
    """A local mirror with the layout cards/<person>/files/*.zip, with or without an index or a manifest.tsv."""

    prefix = ""

    def __init__(self, root: Path) -> None:
        if not (root / "cards").is_dir():
            raise TsugikiError(
                "{root}: there is no folder cards/ in it; give the folder that contains cards/, or the URL of a site",
                root=root,
            )
        self.root = root

    def entries(self) -> list[IndexEntry]:
        """Return the works in the index, or else those in the manifest, or else every zip in cards/ (sorted)."""
        for name in (f"{INDEX}.csv", f"{INDEX}.zip"):
            for path in (self.root / name, self.root / "index_pages" / name):
                if path.is_file():
                    try:
                        return read_index(path.read_bytes(), str(path))
                    except OSError as error:
                        raise unreadable(path, error) from error
        manifest = self.root / "manifest.tsv"
        if manifest.is_file():
            return read_manifest(manifest)
        paths = sorted(path.relative_to(self.root) for path in self.root.glob("cards/*/files/*.zip"))
        return [IndexEntry(path.as_posix(), (Person(path.parts[1]),)) for path in paths]

    def fetch(self, entry: IndexEntry) -> bytes:
        """Read an entry's zip. Files outside the folder, also behind symbolic links, are not read."""
        try:
            path = (self.root / entry.path).resolve(strict=True)
        except FileNotFoundError as error:
            raise FileMissing("{path}: no such file; complete the mirror", path=self.root / entry.path) from error
        except OSError as error:
            raise unreadable(entry.path, error) from error
        except (ValueError, RuntimeError) as error:  # a null character in the name, a circle of symbolic links
            raise TsugikiError(
                "{path!r}: {error}; correct the list of works", path=entry.path, error=error_text(error)
            ) from error
        if not path.is_relative_to(self.root.resolve()) or not path.is_file():
            raise TsugikiError(
                "{path} is not a file in {root}; correct the list of works", path=entry.path, root=self.root
            )
        return _content(path, entry.path)


class LooseFiles:
    """Files as they were downloaded: zips and texts of the library, or folders of these."""

    prefix = ""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.files: list[Path] = []
        for path in paths:
            if not path.exists():
                raise TsugikiError("{path}: there is no such file or folder", path=path)
            inside = sorted(path.rglob("*")) if path.is_dir() else [path]
            self.files += [file for file in inside if file.suffix.lower() in (".zip", ".txt") and file.is_file()]
        if not self.files:
            raise TsugikiError(
                "{paths}: no .zip or .txt file; give works as Aozora Bunko distributes them",
                paths=summarise_list([str(path) for path in paths]),
            )

    def entries(self) -> list[IndexEntry]:
        """Return an entry for each file; title and author are read from the texts."""
        return [IndexEntry(str(path), (Person(""),)) for path in self.files]

    def fetch(self, entry: IndexEntry) -> bytes:
        """Read a file."""
        return _content(Path(entry.path), entry.path)


WorkSource: TypeAlias = Site | MirrorFolder | LooseFiles
"""A site or a folder that contains works. Its `prefix` precedes the path of an entry in `Work.source`."""


def _content(path: Path, name: str) -> bytes:
    """Read the file of a work, which errors call `name`."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_ZIP + 1)
    except OSError as error:
        raise unreadable(name, error) from error
    if len(data) > MAX_ZIP:
        raise TsugikiError("{path} has more than {max_zip}; exclude this work", path=name, max_zip=format_size(MAX_ZIP))
    return data


def open_source(source: str, cache: Path | None = None) -> WorkSource:
    """Open a site (an address such as https://www.aozora.gr.jp) or a mirror folder (one that contains cards/).

    `cache` is for the files of a site; None: tsugiki/aozora in the user's cache folder.
    """
    if urlsplit(source).scheme in ("http", "https"):
        return Site(source, cache or cache_folder("aozora"))
    return MirrorFolder(Path(source))


# Reading -------------------------------------------------------------------------------------------------


def read_entries(
    source: WorkSource,
    entries: Iterable[IndexEntry],
    query: Query,
    skip: Callable[[str], None],
    missing: Callable[[str], None] | None = None,
) -> Iterator[Work]:
    """Read and clean the works of the entries, which `select` returned for this query.

    Conditions that the index could not decide are checked on the texts. `skip` is called with a message for each work
    that cannot be read, `missing` for each whose file does not exist; None: a missing file is an error.
    """
    authors: set[str] = set()
    found = failed = 0
    first = ""
    for entry in entries:
        try:
            work = _read(source, entry)
        except SiteUnreachable:
            raise
        except FileMissing as error:
            reason = error_text(f"{entry.origin}: {error}" if entry.origin else error, _LONGEST_REASON)
            if missing is None:
                raise TsugikiError("{reason}, or skip such works with --skip-missing", reason=reason) from error
            missing(reason)
        except TsugikiError as error:
            reason = error_text(error, _LONGEST_REASON)  # it can contain a path from the list of works
            skip(reason)
        else:
            authors.add(work.author)
            if _matches(work, entry, query):
                found += 1
                yield work
            continue
        failed += 1
        first = first or reason
    if found:
        return
    if failed and not authors:
        raise TsugikiError("no work could be read, {failed} failed; the first: {first}", failed=failed, first=first)
    if query.author is not None and normalise_name(query.author) not in map(normalise_name, authors):
        raise no_author(query, authors)
    raise no_work(query)


def _read(source: WorkSource, entry: IndexEntry) -> Work:
    if not entry.path:
        raise TsugikiError("{origin}: {title} has no text file", origin=entry.origin, title=entry.title)
    if "://" in entry.path:
        raise TsugikiError(
            "{origin}: {path} is at another site, which is not supported", origin=entry.origin, path=entry.path
        )
    name = source.prefix + entry.path
    read = read_text_file if entry.path.lower().endswith(".txt") else read_work
    clean = read(source.fetch(entry), name, entry.encoding)
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


def _matches(work: Work, entry: IndexEntry, query: Query) -> bool:
    """Check the conditions that `select` could not decide, because the entry does not name people, title or kana."""
    named = any(person.name for person in entry.people)
    return (
        (query.author is None or named or normalise_name(work.author) == normalise_name(query.author))
        and (query.title is None or normalise_name(query.title) in normalise_name(work.title))
        and query.kana in (None, work.kana)
    )


# Writing -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Totals:
    """Counts of the works that were written."""

    works: int = 0
    characters: int = 0
    unresolved: int = 0


def write_works(works: Iterable[Work], out: Path) -> Totals:
    """Write one JSON object per line and work. The file appears only when all works are written."""
    totals = Totals()
    with new_file(out) as temporary, temporary.open("wb") as lines:
        for work in works:
            lines.write(to_lines([_record(work)]))
            totals = Totals(totals.works + 1, totals.characters + len(work.text), totals.unresolved + work.unresolved)
    return totals


def _record(work: Work) -> dict[str, str]:
    """Return the JSON object of a work, without the fields that are not known."""
    fields = {
        "title": work.title,
        "author": work.author,
        "translator": work.translator,
        "text": work.text,
        "source": work.source,
        "person_id": work.person_id or None,
        "kana": work.kana,
        "orthography": work.orthography,
    }
    return {name: value for name, value in fields.items() if value is not None}


# Several editions of a work -----------------------------------------------------------------------------


class NearCopies:
    """Keeps the names and the signatures of works (504 bytes each), and groups those that are nearly the same."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._signatures: list[Signature] = []

    def collect(self, works: Iterable[Work]) -> Iterator[Work]:
        """Yield the works, and keep the signatures of all but very short ones."""
        from tsugiki.data.duplicates import signature  # it imports NumPy, which the help of commands does not need

        for work in works:
            if len(work.text) >= _SHORTEST_COPY:
                self._names.append(f"{work.title} ({work.source})")
                self._signatures.append(signature(work.text))
            yield work

    def groups(self) -> list[list[str]]:
        """Return the names of the works in each group of near-duplicates."""
        from tsugiki.data.duplicates import near_duplicates

        return [[self._names[number] for number in group] for group in near_duplicates(self._signatures)]
