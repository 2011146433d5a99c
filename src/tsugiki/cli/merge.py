"""`tsugiki merge`."""

from pathlib import Path
from typing import Annotated

import typer

from tsugiki.cli.adapters.options import AllowBaseMismatch, Weights, parse_weights
from tsugiki.errors import TsugikiError
from tsugiki.language import _


def merge_command(
    adapter: Annotated[
        list[str],
        typer.Option(
            help="An adapter folder, or a name in the library. Can be given several times: the updates are summed."
        ),
    ],
    out: Annotated[Path, typer.Option(help="A new folder for the merged model.")],
    model: Annotated[
        str | None,
        typer.Option(
            help="The base: 'embedded', a model folder, a GGUF file, or a hub id. Default: what the adapter names."
        ),
    ] = None,
    weights: Weights = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="Text on which perplexity is compared before and after, as for tsugiki eval; repeatable."),
    ] = None,
    characters: Annotated[
        int | None,
        typer.Option(min=1, help="Evaluate about this many characters of --data, spread evenly; all if unset."),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Compare logits before and after; this loads the whole model.")
    ] = True,
    allow_base_mismatch: AllowBaseMismatch = False,
) -> None:
    """Merge adapters into their base and write an ordinary Transformers model, in the dtypes of the base's files."""
    from tsugiki.cli.libraries import import_libraries

    import_libraries("tsugiki.training.workflows.merge")
    from tsugiki.adapters.library import adapter_folder
    from tsugiki.adapters.named_base import named_base
    from tsugiki.cli.summary import print_merge
    from tsugiki.cli.tables import print_next_command
    from tsugiki.io.progress import ProgressDisplay
    from tsugiki.training.workflows.merge import Merge, merge_into_folder

    folders = [adapter_folder(name) for name in adapter]
    base = model or named_base(folders[0])
    if base is None:
        raise TsugikiError(_("{adapter} does not name its base; give the base as --model").format(adapter=adapter[0]))
    merge = Merge(
        base,
        folders,
        parse_weights(weights),
        allow_base_mismatch,
        verify,
        data or None,
        characters,
    )
    print_merge(out, merge_into_folder(merge, out, ProgressDisplay()))
    print_next_command("chat", "--model", str(out))
