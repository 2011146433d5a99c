"""`tsugiki adapters truncate`."""

from typing import Annotated

import typer

from tsugiki.cli.adapters.options import ADAPTER_HELP, Library, NewAdapter
from tsugiki.language import _


def truncate_command(
    adapter: Annotated[str, typer.Argument(help=ADAPTER_HELP)],
    out: NewAdapter,
    rank: Annotated[int | None, typer.Option(help="The new rank of every layer that has a higher one.")] = None,
    energy: Annotated[
        float | None,
        typer.Option(help="Instead of --rank: give each layer the smallest rank that keeps this share, such as 0.99."),
    ] = None,
    library: Library = None,
) -> None:
    """Reduce an adapter's rank; each layer gets the best approximation of its update that the rank allows.

    The energy of an update is the sum of squares of its elements.
    """
    from tsugiki.adapters.algebra.matrices import kept_energy, truncated, truncated_to_energy
    from tsugiki.adapters.library import adapter_folder, new_adapter_folder
    from tsugiki.adapters.lora_weights import read_lora_weights, write_lora_weights
    from tsugiki.adapters.metadata import Provenance, source_adapter
    from tsugiki.cli.adapters.shown import print_kept, print_written
    from tsugiki.errors import TsugikiError

    folder, target = adapter_folder(adapter, library), new_adapter_folder(out, library)
    lora = read_lora_weights(folder)
    if rank is not None and energy is None:
        shorter, kept = truncated(lora, rank)
    elif energy is not None and rank is None:
        shorter, kept = truncated_to_energy(lora, energy)
    else:
        raise TsugikiError(_("pass either --rank or --energy"))
    if all(layer.after == layer.before for layer in kept.values()):
        highest = max(layer.before for layer in kept.values())
        raise TsugikiError(
            _("no layer of {adapter} would get a lower rank (the highest is {highest}); nothing was written").format(
                adapter=adapter, highest=highest
            )
        )
    settings = {"rank": rank} if energy is None else {"energy": energy}
    provenance = Provenance(operation="truncate", sources=(source_adapter(folder),), settings=settings)
    write_lora_weights(shorter, target, provenance, [folder])
    print_kept(kept, _("overall: {energy:.2%} of the update's energy is kept").format(energy=kept_energy(kept)))
    print_written(target)
