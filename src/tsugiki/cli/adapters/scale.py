"""`tsugiki adapters scale`."""

from typing import Annotated

import typer

from tsugiki.cli.adapters.options import Library


def scale_command(
    adapter: Annotated[str, typer.Argument(help="A name in the library, or a folder.")],
    by: Annotated[float, typer.Option(help="The factor on the update; -1 takes what was learned away from the base.")],
    out: Annotated[str, typer.Option(help="A new name in the library, or the path of a new folder.")],
    library: Library = None,
) -> None:
    """Make an adapter that does more, less, or the opposite of another."""
    from tsugiki.adapters.algebra.combine import scaled
    from tsugiki.adapters.library import adapter_folder, new_adapter_folder
    from tsugiki.adapters.lora_weights import read_lora_weights, source, write_lora_weights
    from tsugiki.cli.adapters.shown import print_written

    folder, target = adapter_folder(adapter, library), new_adapter_folder(out, library)
    made = {"operation": "scale", "by": by, "from": [source(folder)]}
    write_lora_weights(scaled(read_lora_weights(folder), by), target, made)
    print_written(target)
