"""Select works by author, title, orthography and role."""

import difflib
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

from tsugiki.data.read.aozora import Kana
from tsugiki.data.read.aozora.index import ROLES, IndexEntry, Role
from tsugiki.errors import TsugikiError
from tsugiki.language import _


@dataclass(frozen=True)
class Query:
    """The works to select. None matches every work.

    Attributes:
        author: a person's full name; spaces and character widths are ignored.
        title: the title or a part of it.
        kana: the orthography.
        role: the role of that person; without `author`, any person of the work must have this role.
    """

    author: str | None = None
    title: str | None = None
    kana: Kana | None = None
    role: Role = "author"


def parse_role(name: str) -> Role:
    """Parse the English name of a role, or its Japanese name in the index."""
    for flag, role in ROLES.items():
        if name in (flag, role):
            return role
    known = ", ".join(f"{role} ({flag})" for flag, role in ROLES.items())
    raise TsugikiError(_("--role {name}: unknown role; choose from {known}").format(name=name, known=known))


def select(entries: list[IndexEntry], query: Query) -> list[IndexEntry]:
    """Select the works in the public domain that can match the query, each path once.

    An entry without a title or an orthography can match every query. Authors are compared by the ids of persons, so
    that works under another name of the same person are selected too.

    Raises:
        TsugikiError: no entry can match; the message suggests similar names of authors.
    """
    chosen = _by_person(entries, query)
    if query.title is not None:
        chosen = [
            entry
            for entry in chosen
            if entry.title is None or normalise_name(query.title) in normalise_name(entry.title)
        ]
    if query.kana is not None:
        chosen = [entry for entry in chosen if entry.kana in (None, query.kana)]
    free = [entry for entry in chosen if entry.free]
    if chosen and not free:
        raise TsugikiError(
            _("only works under copyright match {options}; they are never used").format(options=_options(query))
        )
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
            _("--role {role}: this source names only authors; put Aozora Bunko's index into the folder").format(
                role=query.role
            )
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
            _("{author} is not {role} in this source, but {others}; use --role {other}").format(
                author=query.author, role=query.role, others=_(" and ").join(others), other=others[0]
            )
        )
    raise no_author(query, {person.name for person in people if person.name and person.role == query.role})


def normalise_name(name: str) -> str:
    """Return a name in the form for comparison: normalised widths, no spaces, at most 500 characters."""
    # The limit is also for speed: normalising a long row of combining marks takes quadratic time.
    return "".join(unicodedata.normalize("NFKC", name[:500]).split())


def no_author(query: Query, names: Iterable[str]) -> TsugikiError:
    """Return the error for an author's name that no person in this role has; it suggests similar names."""
    known = {normalise_name(name): name for name in sorted(names)}
    near = difflib.get_close_matches(normalise_name(query.author or ""), known, n=3, cutoff=0.4)
    if near:
        names = ", ".join(known[name] for name in near)
        advice = _("did you mean {names}?").format(names=names)
    else:
        advice = _("give the full name")
    return TsugikiError(
        _("no {role} {author} in this source; {advice}").format(role=query.role, author=query.author, advice=advice)
    )


def no_work(query: Query) -> TsugikiError:
    """Return the error for a query that no work matches."""
    options = _options(query)
    if options:
        return TsugikiError(_("no work matches {options}; remove an option").format(options=options))
    return TsugikiError(_("no works in this source"))


def _options(query: Query) -> str:
    options = {
        "author": query.author,
        "title": query.title,
        "kana": query.kana,
        "role": query.role if query.role != "author" else None,
    }
    return " ".join(f"--{name} {value}" for name, value in options.items() if value)
