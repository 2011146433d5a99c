"""`tsugiki cache`."""

import json
from typing import Annotated

import typer

from tsugiki.cli.help_page import Command
from tsugiki.errors import TsugikiError
from tsugiki.language import _

cache_app = typer.Typer(help="List or remove what Tsugiki keeps on the disk to be faster the next time.")


@cache_app.callback(invoke_without_command=True)
def _without_command(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@cache_app.command("list", cls=Command)
def list_command(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, one object per line.")] = False,
) -> None:
    """List the quantised models in the cache, and how much room the rest of it takes."""
    from tsugiki.cli.tables import print_line, print_table
    from tsugiki.io.cache import cache_folder
    from tsugiki.io.formatting import format_size
    from tsugiki.report.cache import cache_fields, cache_table, read_cache

    cached = read_cache()
    if as_json:
        for entry in cached:
            typer.echo(json.dumps(cache_fields(entry), ensure_ascii=False))
    elif not cached:
        print_line(_("nothing is in the cache, {folder}").format(folder=cache_folder("")))
    else:
        total = format_size(sum(entry.bytes for entry in cached))
        print_table(cache_table(cached), _("{size} in {folder}").format(size=total, folder=cache_folder("")))


@cache_app.command("clear", cls=Command)
def clear_command(
    kinds: Annotated[
        list[str] | None,
        typer.Argument(help="quantized, fingerprints, gguf, tokens or aozora; without it, everything is removed."),
    ] = None,
) -> None:
    """Remove what is in the cache; it is made again, or downloaded again, when it is needed."""
    from tsugiki.cli.tables import print_line
    from tsugiki.io.atomic import remove_folder
    from tsugiki.io.cache import cache_folder
    from tsugiki.io.formatting import format_size
    from tsugiki.report.cache import KINDS, read_cache

    unknown = [kind for kind in kinds or () if kind not in KINDS]
    if unknown:
        raise TsugikiError(
            _("{kind}: not in the cache; known are {known}").format(kind=unknown[0], known=", ".join(KINDS))
        )
    chosen = list(dict.fromkeys(kinds or KINDS))
    freed = sum(entry.bytes for entry in read_cache() if entry.kind in chosen)
    for kind in chosen:
        if cache_folder(kind).is_dir():
            remove_folder(cache_folder(kind))
    print_line(_("removed {size} from {folder}").format(size=format_size(freed), folder=cache_folder("")))
