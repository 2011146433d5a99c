"""List or remove what Tsugiki keeps on the disk to be faster the next time.

Examples:
    tsugiki cache list
    tsugiki cache clear quantized
"""

import json
from typing import TYPE_CHECKING

import typer

from tsugiki.cli.terminal import print_line, print_table
from tsugiki.errors import TsugikiError
from tsugiki.language import _

if TYPE_CHECKING:
    from tsugiki.cli.help import Commands


def list_command(
    *,
    json_: bool = False,
) -> None:
    """List the quantised models in the cache, and how much room the rest of it takes.

    Args:
        json_: Print JSON, one object per line.

    Examples:
        tsugiki cache list
        tsugiki cache list --json
    """
    from tsugiki.io.cache import cache_folder
    from tsugiki.io.formatting import format_size
    from tsugiki.report.cache import cache_fields, cache_table, read_cache

    cached = read_cache()
    if json_:
        for entry in cached:
            typer.echo(json.dumps(cache_fields(entry), ensure_ascii=False))
    elif not cached:
        print_line(_("nothing is in the cache, {folder}").format(folder=cache_folder("")))
    else:
        total = format_size(sum(entry.bytes for entry in cached))
        print_table(cache_table(cached), _("{size} in {folder}").format(size=total, folder=cache_folder("")))


def clear_command(
    kinds: list[str] | None = None,
) -> None:
    """Remove what is in the cache; it is made again, or downloaded again, when it is needed.

    Args:
        kinds: quantized, fingerprints, gguf, tokens, references or aozora; without it, everything is removed.

    Examples:
        tsugiki cache clear
        tsugiki cache clear quantized tokens
    """
    from tsugiki.io.atomic import remove_folder
    from tsugiki.io.cache import cache_folder
    from tsugiki.io.formatting import format_size
    from tsugiki.report.cache import KINDS, read_cache

    unknown = [kind for kind in kinds or () if kind not in KINDS]
    if unknown:
        message = _("{kind}: not in the cache; known are {known}")
        raise TsugikiError(message.format(kind=unknown[0], known=", ".join(KINDS)))
    chosen = list(dict.fromkeys(kinds or KINDS))
    freed = sum(entry.bytes for entry in read_cache() if entry.kind in chosen)
    for kind in chosen:
        if cache_folder(kind).is_dir():
            remove_folder(cache_folder(kind))
    print_line(_("removed {size} from {folder}").format(size=format_size(freed), folder=cache_folder("")))


CACHE: "Commands" = {"list": (None, list_command), "clear": (None, clear_command)}
"""The commands below `tsugiki cache`."""
