"""Which works are wanted, by what their entries say."""

import difflib
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

from tsugiki.data.aozora.index import ROLES, Entry, Kana, Role
from tsugiki.errors import TsugikiError


@dataclass(frozen=True)
class Query:
    """Which works are wanted; None takes all.

    Attributes:
        author: a person's full name; spaces and widths do not matter.
        title: the title or a part of it.
        kana: the orthography.
        role: what that person, or anyone where no name is given, did in the work.
    """

    author: str | None = None
    title: str | None = None
    kana: Kana | None = None
    role: Role = "author"


def parse_role(name: str) -> Role:
    """A role by its English name or by the index's Japanese one.

    Raises:
        TsugikiError: no such role.
    """
    for flag, role in ROLES.items():
        if name in (flag, role):
            return role
    known = ", ".join(f"{role} ({flag})" for flag, role in ROLES.items())
    raise TsugikiError(f"--role {name}: no such role; known are {known}")


def select(entries: list[Entry], query: Query) -> list[Entry]:
    """The free entries that match as far as they say anything, each path once.

    An author is a person: works that the same person signed with another name are taken too.

    Raises:
        TsugikiError: nothing can match; names near matches for an author.
    """
    chosen = _by_person(entries, query)
    if query.title is not None:
        chosen = [entry for entry in chosen if entry.title is None or plain(query.title) in plain(entry.title)]
    if query.kana is not None:
        chosen = [entry for entry in chosen if entry.kana in (None, query.kana)]
    free = [entry for entry in chosen if entry.free]
    if chosen and not free:
        raise TsugikiError(f"only works under copyright match{_asked(query)}; those are never taken")
    if not free:
        raise nothing(query)
    first: dict[str, Entry] = {}
    for entry in free:
        first.setdefault(entry.path or entry.origin, entry)
    return list(first.values())


def _by_person(entries: list[Entry], query: Query) -> list[Entry]:
    people = [person for entry in entries for person in entry.people if person.name]
    if query.role != "author" and all(person.role == "author" for person in people):
        raise TsugikiError(
            f"--role {query.role}: this source names nobody but authors; put Aozora Bunko's index into the folder"
        )
    if not people:
        return entries
    if query.author is None:
        return [entry for entry in entries if any(person.role == query.role for person in entry.people)]
    ids = {person.id for person in people if plain(person.name or "") == plain(query.author)}
    chosen = [
        entry for entry in entries if any(person.id in ids and person.role == query.role for person in entry.people)
    ]
    if chosen:
        return chosen
    others = sorted({person.role for person in people if person.id in ids})
    if others:
        raise TsugikiError(
            f"{query.author} is no {query.role} in this source, but {' and '.join(others)}; ask with --role {others[0]}"
        )
    raise no_author(query, {person.name for person in people if person.name and person.role == query.role})


def plain(name: str) -> str:
    """A name as it is compared: one width, no spaces."""
    return "".join(unicodedata.normalize("NFKC", name).split())


def no_author(query: Query, names: Iterable[str]) -> TsugikiError:
    """The error for a name that nobody in the role has, with near ones."""
    known = {plain(name): name for name in sorted(names)}
    near = difflib.get_close_matches(plain(query.author or ""), known, n=3, cutoff=0.4)
    advice = f"did you mean {', '.join(known[name] for name in near)}?" if near else "give the full name"
    return TsugikiError(f"no {query.role} {query.author} in this source; {advice}")


def nothing(query: Query) -> TsugikiError:
    """The error for a query that leaves no work."""
    asked = _asked(query)
    return TsugikiError(f"no work matches{asked}; ask for less" if asked else "no works in this source")


def _asked(query: Query) -> str:
    given = {
        "author": query.author,
        "title": query.title,
        "kana": query.kana,
        "role": query.role if query.role != "author" else None,
    }
    return "".join(f" --{name} {value}" for name, value in given.items() if value)
