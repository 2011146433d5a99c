"""`tsugiki adapters scale`."""

from typing import Annotated

import typer

from tsugiki.cli.adapters.options import ADAPTER_HELP, Library, NewAdapter


def scale_command(
    adapter: Annotated[str, typer.Argument(help=ADAPTER_HELP)],
    by: Annotated[float, typer.Option(help="The factor on the update; with -1 the result subtracts the adapter.")],
    out: NewAdapter,
    library: Library = None,
) -> None:
    """Multiply an adapter's update by a number, to make its effect stronger, weaker, or the opposite."""
    from tsugiki.adapters.algebra.combine import scaled
    from tsugiki.adapters.library import adapter_folder, new_adapter_folder
    from tsugiki.adapters.lora_weights import read_lora_weights, write_lora_weights
    from tsugiki.adapters.metadata import Provenance, source_adapter
    from tsugiki.cli.adapters.shown import print_written

    folder, target = adapter_folder(adapter, library), new_adapter_folder(out, library)
    provenance = Provenance(operation="scale", sources=(source_adapter(folder),), settings={"by": by})
    write_lora_weights(scaled(read_lora_weights(folder), by), target, provenance, [folder])
    print_written(target)
