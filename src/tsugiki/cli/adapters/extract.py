"""`tsugiki adapters extract`."""

from typing import Annotated

import typer

from tsugiki.cli.adapters.options import Library


def extract_command(
    model: Annotated[str, typer.Option(help="The fine-tuned model: a folder, or a hub id.")],
    base: Annotated[str, typer.Option(help="What it was fine-tuned from: 'embedded', a folder, or a hub id.")],
    out: Annotated[str, typer.Option(help="A new name in the library, or the path of a new folder.")],
    rank: Annotated[int, typer.Option(help="r of the adapter.")] = 32,
    target_modules: Annotated[
        str, typer.Option(help="Layers to extract: name endings 'a,b', or 'all-linear' (all but the output head).")
    ] = "all-linear",
    library: Library = None,
) -> None:
    """Make an adapter of what a model learned when it was fine-tuned whole.

    Both are read a layer at a time. The energy of a change is the sum of squares of its elements.
    """
    from tsugiki.adapters.algebra.extract import extract
    from tsugiki.adapters.library import new_adapter_folder
    from tsugiki.adapters.lora_weights import write_lora_weights
    from tsugiki.cli.adapters.shown import print_kept, print_written, track_layers
    from tsugiki.cli.flags import layer_names
    from tsugiki.errors import summarise_list

    target = new_adapter_folder(out, library)
    found = extract(model, base, rank, layer_names(target_modules) or "all-linear", track_layers)
    made = {"operation": "extract", "rank": rank, "from": [{"name": model}], "energy": found.energy}
    write_lora_weights(found.lora, target, made)
    whole = sum(layer.whole for layer in found.kept.values()) + sum(found.left.values())
    lines = [f"overall: {found.energy:.2%} of the energy of all that changed is in the adapter"]
    if found.unchanged:
        lines.append(f"left out, since they did not change: {summarise_list(found.unchanged)}")
    if found.left:
        shares = [
            f"{name} ({energy / whole:.2%})" for name, energy in sorted(found.left.items(), key=lambda one: -one[1])
        ]
        lines.append(f"changed, and not in the adapter: {summarise_list(shares)}")
    print_kept(found.kept, *lines)
    print_written(target)
