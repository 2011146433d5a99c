"""`tsugiki aozora`: works of Aozora Bunko as clean text, one JSON line each."""

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from tsugiki.data.read.aozora.index import Kana
from tsugiki.data.read.aozora.query import Query, parse_role, select
from tsugiki.data.read.aozora.site import SITE
from tsugiki.language import _, counts, ngettext


def aozora_command(
    out: Annotated[Path, typer.Option(help="JSON-lines file to write; it must not exist.")],
    files: Annotated[
        list[Path] | None,
        typer.Argument(help="Downloaded works (.zip, .txt), or folders of these, instead of a site or a mirror."),
    ] = None,
    source: Annotated[str, typer.Option(help="URL of a site, or a mirror folder that contains cards/.")] = SITE,
    author: Annotated[str | None, typer.Option(help="Full name, such as 夏目漱石.")] = None,
    role: Annotated[
        str,
        typer.Option(
            help="Role of --author (or of any person) in the work: author, translator (翻訳者), editor, reviser."
        ),
    ] = "author",
    title: Annotated[str | None, typer.Option(help="The title or a part of it.")] = None,
    kana: Annotated[
        Kana | None,
        typer.Option(help="Kana orthography, as the index gives it; if it does not, guessed from the text."),
    ] = None,
    skip_missing: Annotated[
        bool,
        typer.Option(
            "--skip-missing",
            help="Skip and count works whose file does not exist. Damaged works are always skipped and listed.",
        ),
    ] = False,
    cache: Annotated[
        Path | None, typer.Option(help="Folder for the files of a site (default: ~/.cache/tsugiki/aozora).")
    ] = None,
) -> None:
    """Convert works of Aozora Bunko to clean text: one JSON line per work, with title, author, text and source.

    Works under copyright are never used. Files of a site are cached, and later runs download only missing ones.
    """
    from tsugiki.cli.tables import print_next_command
    from tsugiki.data.read.aozora.works import (
        LooseFiles,
        NearCopies,
        check_target,
        open_source,
        read_entries,
        write_works,
    )
    from tsugiki.errors import summarise_list
    from tsugiki.io.progress import ProgressDisplay

    start = time.perf_counter()
    check_target(out)
    query = Query(author, title, kana, parse_role(role))
    opened = LooseFiles(files) if files else open_source(source, cache)
    entries = select(opened.entries(), query)
    skipped: list[str] = []
    missing: list[str] = []
    tracked = ProgressDisplay().track(entries, _("works"))
    works = read_entries(opened, tracked, query, skipped.append, missing.append if skip_missing else None)
    copies = NearCopies()
    totals = write_works(copies.collect(works), out)
    seconds = time.perf_counter() - start
    for reason in skipped:
        print(_("skipped {reason}").format(reason=reason), file=sys.stderr)
    for reason in missing:
        print(_("missing {reason}").format(reason=reason), file=sys.stderr)
    print(
        _(
            "{works}, {characters}, {unresolved:,} without a code (〓), {skipped:,} skipped, {missing:,} missing, "
            "{seconds:.1f} s, {speed:.0f} works/s -> {out}"
        ).format(
            works=ngettext("{count:,} work", "{count:,} works", totals.works).format(count=totals.works),
            characters=counts.characters(totals.characters),
            unresolved=totals.unresolved,
            skipped=len(skipped),
            missing=len(missing),
            seconds=seconds,
            speed=totals.works / seconds,
            out=out,
        ),
        file=sys.stderr,
    )
    if groups := copies.groups():
        print(
            ngettext(
                "{count:,} work is there in several editions, such as {names}: with --drop-duplicates, tsugiki train "
                "uses one of them",
                "{count:,} works are there in several editions, such as {names}: with --drop-duplicates, tsugiki train "
                "uses one of each",
                len(groups),
            ).format(count=len(groups), names=summarise_list(groups[0])),
            file=sys.stderr,
        )
    print_next_command("preview", "--model", "embedded", "--data", str(out), err=True)
