"""`tsugiki aozora`: works out of Aozora Bunko, clean, one JSON line each."""

import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tsugiki.data import aozora_source


class Kana(StrEnum):
    """Which kana orthography."""

    modern = "modern"
    old = "old"


def aozora_command(
    out: Annotated[Path, typer.Option(help="JSON lines to write; must not exist yet.")],
    source: Annotated[
        str, typer.Option(help="The site's URL, or a mirror folder that contains cards/.")
    ] = aozora_source.SITE,
    author: Annotated[str | None, typer.Option(help="Full name, such as 夏目漱石.")] = None,
    title: Annotated[str | None, typer.Option(help="The title or a part of it.")] = None,
    kana: Annotated[Kana | None, typer.Option(help="Only this kana orthography.")] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Where a site's files are kept (default: ~/.cache/tsugiki/aozora).")
    ] = None,
) -> None:
    """Turn works of Aozora Bunko into clean text: one JSON line a work with title, author, text and source."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    start = time.perf_counter()
    aozora_source.check_target(out)
    query = aozora_source.Query(author, title, kana.value if kana else None)
    place = aozora_source.open_source(source, cache)
    entries = aozora_source.select(place.entries(), query)
    skipped: list[str] = []
    console = Console(stderr=True)
    columns = (TextColumn("works"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        works = aozora_source.read_entries(place, progress.track(entries), query, skipped.append)
        totals = aozora_source.write_works(works, out)
    seconds = time.perf_counter() - start
    for reason in skipped:
        print(f"skipped {reason}", file=sys.stderr)
    print(
        f"{totals.works} works, {totals.characters} characters, {totals.unresolved} characters without a code (〓), "
        f"{len(skipped)} skipped, {seconds:.1f} s, {totals.works / seconds:.0f} works/s -> {out}",
        file=sys.stderr,
    )
