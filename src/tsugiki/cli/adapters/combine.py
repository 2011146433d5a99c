"""`tsugiki adapters combine`."""

from typing import Annotated

import typer

from tsugiki.cli.adapters.options import Library, parse_weights


def combine_command(
    adapters: Annotated[list[str], typer.Argument(help="Names in the library, or folders.")],
    out: Annotated[str, typer.Option(help="A new name in the library, or the path of a new folder.")],
    weights: Annotated[
        str | None, typer.Option(help="One for each, such as 0.7,0.3; negative ones subtract. Equal shares if unset.")
    ] = None,
    type_: Annotated[
        str,
        typer.Option(
            "--type",
            help="cat (the exact sum), svd (the sum, of one --rank), linear, or with a --density ties, dare_ties, "
            "dare_linear, magnitude_prune, and these with _svd: PEFT's combination types.",
        ),
    ] = "cat",
    rank: Annotated[int | None, typer.Option(help="Of an svd's result; the highest of the adapters' if unset.")] = None,
    density: Annotated[float | None, typer.Option(help="The share of elements that stay, such as 0.2.")] = None,
    seed: Annotated[int, typer.Option(help="Of the elements that dare drops.")] = 0,
    allow_base_mismatch: Annotated[
        bool, typer.Option("--allow-base-mismatch", help="Combine adapters that were trained on different bases.")
    ] = False,
    library: Library = None,
) -> None:
    """Make one adapter of several that share a base.

    ‖ΔW‖, the root of the sum of squares of an update's elements over all layers, says how much of each is in it.
    """
    import dataclasses

    from tsugiki.adapters.algebra.combine import Combination, combine, distance, load_weighted_adapters, norm
    from tsugiki.adapters.library import adapter_folder, new_adapter_folder
    from tsugiki.adapters.lora_weights import source, write_lora_weights
    from tsugiki.cli.adapters.shown import print_written, track_layers
    from tsugiki.cli.tables import print_table

    folders, target = [adapter_folder(adapter, library) for adapter in adapters], new_adapter_folder(out, library)
    how = Combination(type_, rank, density, seed)
    parts = load_weighted_adapters(
        folders, parse_weights(weights) if weights is not None else [1 / len(folders)] * len(folders)
    )
    lora = combine(parts, how, allow_base_mismatch=allow_base_mismatch, track=track_layers)
    made = {
        "operation": "combine",
        **dataclasses.asdict(how),
        "from": [source(folder) | {"weight": part.weight} for folder, part in zip(folders, parts, strict=True)],
    }
    write_lora_weights(lora, target, made)
    rows = [[part.name, f"{part.weight:g}", f"{abs(part.weight) * norm(part.lora):.4g}"] for part in parts]
    line = f"{type_}: ‖ΔW‖ = {norm(lora):.4g}"
    if type_ != "cat":
        exact = combine(parts, Combination("cat"), allow_base_mismatch=allow_base_mismatch)
        line += f"; the exact sum's is {norm(exact):.4g}, and it is {distance(lora, exact):.4g} away"
    print_table((["adapter", "weight", "‖weight · ΔW‖"], rows), line)
    print_written(target)
