"""`tsugiki adapters truncate`."""

from typing import Annotated

import typer

from tsugiki.cli.adapters.options import Library


def truncate_command(
    adapter: Annotated[str, typer.Argument(help="A name in the library, or a folder.")],
    out: Annotated[str, typer.Option(help="A new name in the library, or the path of a new folder.")],
    rank: Annotated[int | None, typer.Option(help="Of every layer whose rank is higher.")] = None,
    energy: Annotated[
        float | None, typer.Option(help="Instead: in each layer the smallest rank that keeps this share, such as 0.99.")
    ] = None,
    library: Library = None,
) -> None:
    """Lower an adapter's rank, each layer's update being approximated as well as the rank allows.

    The energy of an update is the sum of squares of its elements.
    """
    from tsugiki.adapters.algebra.truncate import overall, truncated, truncated_to_energy
    from tsugiki.adapters.library import adapter_folder, new_adapter_folder
    from tsugiki.adapters.lora_weights import read_lora_weights, source, write_lora_weights
    from tsugiki.cli.adapters.shown import print_kept, print_written
    from tsugiki.errors import TsugikiError

    folder, target = adapter_folder(adapter, library), new_adapter_folder(out, library)
    lora = read_lora_weights(folder)
    if rank is not None and energy is None:
        shorter, kept = truncated(lora, rank)
    elif energy is not None and rank is None:
        shorter, kept = truncated_to_energy(lora, energy)
    else:
        raise TsugikiError("give --rank or --energy, and not both")
    if all(layer.after == layer.before for layer in kept.values()):
        most = max(layer.before for layer in kept.values())
        raise TsugikiError(f"{adapter} has no rank above {most}, and loses nothing so; nothing was written")
    write_lora_weights(
        shorter, target, {"operation": "truncate", "rank": rank, "energy": energy, "from": [source(folder)]}
    )
    print_kept(kept, f"overall: {overall(kept):.2%} of the update's energy is kept")
    print_written(target)
