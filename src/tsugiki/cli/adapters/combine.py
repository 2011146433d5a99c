"""`tsugiki adapters combine`."""

from typing import Annotated

import typer

from tsugiki.cli.adapters.options import AllowBaseMismatch, Library, NewAdapter, Weights, parse_weights
from tsugiki.language import _


def combine_command(
    adapters: Annotated[list[str], typer.Argument(help="Names in the library, or folders.")],
    out: NewAdapter,
    weights: Weights = None,
    combination_type: Annotated[
        str,
        typer.Option(
            "--type",
            help="cat (the exact sum), svd (the sum, at a --rank), linear, or one of PEFT's other combination types, "
            "which need a --density: ties, dare_ties, dare_linear, magnitude_prune, and these with _svd.",
        ),
    ] = "cat",
    rank: Annotated[
        int | None,
        typer.Option(help="Rank of the result, for types with svd; if unset, the highest of the adapters' ranks."),
    ] = None,
    density: Annotated[
        float | None, typer.Option(help="The share of elements that are kept, such as 0.2, for types that drop some.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the random choice of elements, for the dare types.")] = 0,
    allow_base_mismatch: AllowBaseMismatch = False,
    library: Library = None,
) -> None:
    """Combine several adapters of one base into one adapter, by default as the exact weighted sum.

    The table shows how large each part is: ‖ΔW‖ is the root of the sum of squares of the update over all layers.
    """
    from tsugiki.adapters.algebra.combine import (
        Combination,
        combine,
        distance,
        load_weighted_adapters,
        norm,
        weights_or_ones,
        write_combined,
    )
    from tsugiki.adapters.library import adapter_folder, new_adapter_folder
    from tsugiki.cli.adapters.shown import print_written, track_layers
    from tsugiki.cli.tables import print_table

    folders, target = [adapter_folder(adapter, library) for adapter in adapters], new_adapter_folder(out, library)
    combination = Combination(combination_type, rank, density, seed)
    parts = load_weighted_adapters(folders, weights_or_ones(parse_weights(weights), len(folders)))
    lora = combine(parts, combination, allow_base_mismatch=allow_base_mismatch, track=track_layers)
    write_combined(lora, target, folders, [part.weight for part in parts], combination)
    rows = [[part.name, f"{part.weight:g}", f"{abs(part.weight) * norm(part.lora):.4g}"] for part in parts]
    line = f"{combination_type}: ‖ΔW‖ = {norm(lora):.4g}"
    if combination_type != "cat":
        exact = combine(parts, Combination("cat"), allow_base_mismatch=allow_base_mismatch)
        line += _("; the exact sum has {norm:.4g}, and differs from the result by {distance:.4g}").format(
            norm=norm(exact), distance=distance(lora, exact)
        )
    print_table(([_("adapter"), _("weight"), _("‖weight · ΔW‖")], rows), line)
    print_written(target)
