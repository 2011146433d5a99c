"""`tsugiki adapters extract`."""

from typing import Annotated

import typer

from tsugiki.cli.adapters.options import Library, NewAdapter
from tsugiki.language import _


def extract_command(
    finetuned: Annotated[str, typer.Option("--model", help="The fine-tuned model: a folder, or a hub id.")],
    base: Annotated[
        str, typer.Option(help="The base that it was fine-tuned from: 'embedded', a model folder, or a hub id.")
    ],
    out: NewAdapter,
    rank: Annotated[int, typer.Option(help="Rank of the adapter.")] = 32,
    target_modules: Annotated[
        str,
        typer.Option(help="Layers to extract: name endings 'a,b', or 'all-linear' (all except the output head)."),
    ] = "all-linear",
    library: Library = None,
) -> None:
    """Make a LoRA adapter from the difference between a fully fine-tuned model and its base.

    Both models are read layer by layer. The energy of a change is the sum of squares of its elements.
    """
    from tsugiki.adapters.algebra.extract import extract
    from tsugiki.adapters.library import new_adapter_folder
    from tsugiki.adapters.lora_weights import write_lora_weights
    from tsugiki.adapters.metadata import Provenance, Source
    from tsugiki.base.resolve import local_folder
    from tsugiki.cli.adapters.shown import print_kept, print_written, track_layers
    from tsugiki.cli.flags import layer_names
    from tsugiki.errors import summarise_list

    target = new_adapter_folder(out, library)
    found = extract(finetuned, base, rank, layer_names(target_modules) or "all-linear", track_layers)
    provenance = Provenance(
        operation="extract", sources=(Source(name=finetuned),), settings={"rank": rank, "energy": found.energy}
    )
    write_lora_weights(found.lora, target, provenance, [local_folder(finetuned)])
    total = found.total_energy
    lines = [_("overall: the adapter holds {energy:.2%} of the energy of all changes").format(energy=found.energy)]
    if found.unchanged:
        lines.append(
            _("left out because they did not change: {unchanged}").format(unchanged=summarise_list(found.unchanged))
        )
    if found.not_captured:
        by_energy = sorted(found.not_captured.items(), key=lambda item: -item[1])
        shares = [f"{name} ({energy / total:.2%})" for name, energy in by_energy]
        lines.append(_("changed, but not in the adapter: {shares}").format(shares=summarise_list(shares)))
    print_kept(found.kept, *lines)
    print_written(target)
