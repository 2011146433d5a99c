"""`tsugiki aozora`: works out of Aozora Bunko, clean, one JSON line each."""

import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tsugiki.data.aozora.query import Query, parse_role, select
from tsugiki.data.aozora.site import SITE
from tsugiki.data.aozora.source import check_target, open_source, read_entries, write_works


class Kana(StrEnum):
    """Which kana orthography."""

    modern = "modern"
    old = "old"


def aozora_command(
    out: Annotated[Path, typer.Option(help="JSON lines to write; must not exist yet.")],
    source: Annotated[str, typer.Option(help="The site's URL, or a mirror folder that contains cards/.")] = SITE,
    author: Annotated[str | None, typer.Option(help="Full name, such as 夏目漱石.")] = None,
    role: Annotated[
        str,
        typer.Option(help="What --author, or anyone, did in the work: author, translator (翻訳者), editor, reviser."),
    ] = "author",
    title: Annotated[str | None, typer.Option(help="The title or a part of it.")] = None,
    kana: Annotated[
        Kana | None, typer.Option(help="Only this kana orthography: the index's, or a guess from the text without it.")
    ] = None,
    skip_missing: Annotated[
        bool,
        typer.Option(
            "--skip-missing",
            help="Leave out and count works whose file is not there; damaged ones are always left out and named.",
        ),
    ] = False,
    cache: Annotated[
        Path | None, typer.Option(help="Where a site's files are kept (default: ~/.cache/tsugiki/aozora).")
    ] = None,
) -> None:
    """Turn works of Aozora Bunko into clean text: one JSON line a work with title, author, text and source.

    Works under copyright are never taken. A site's files are kept: a later run asks only for what is not there yet.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    start = time.perf_counter()
    check_target(out)
    query = Query(author, title, kana.value if kana else None, parse_role(role))
    place = open_source(source, cache)
    entries = select(place.entries(), query)
    skipped: list[str] = []
    missing: list[str] = []
    console = Console(stderr=True)
    columns = (TextColumn("works"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        works = read_entries(
            place, progress.track(entries), query, skipped.append, missing.append if skip_missing else None
        )
        totals = write_works(works, out)
    seconds = time.perf_counter() - start
    for reason in skipped:
        print(f"skipped {reason}", file=sys.stderr)
    for reason in missing:
        print(f"missing {reason}", file=sys.stderr)
    print(
        f"{totals.works} works, {totals.characters} characters, {totals.unresolved} characters without a code (〓), "
        f"{len(skipped)} skipped, {len(missing)} missing, "
        f"{seconds:.1f} s, {totals.works / seconds:.0f} works/s -> {out}",
        file=sys.stderr,
    )
