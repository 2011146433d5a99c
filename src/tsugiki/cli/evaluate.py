"""`tsugiki eval`."""

from pathlib import Path
from typing import Annotated

import typer


def evaluate_command(
    model: Annotated[str, typer.Option(help="'embedded', a model folder, or a hub id.")],
    data: Annotated[str, typer.Option(help="A .txt or .jsonl file, or a folder of these.")],
    adapter: Annotated[Path | None, typer.Option(help="An adapter folder, such as a run's.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    allow_other_base: Annotated[
        bool, typer.Option("--allow-other-base", help="Load an adapter that was trained on another base.")
    ] = False,
) -> None:
    """Loss, perplexity and bits per character of a model on texts."""
    import json

    from rich.console import Console
    from rich.table import Table

    from tsugiki.adapters.files import load_adapter
    from tsugiki.data.texts import read_documents
    from tsugiki.models import default_device, load_model, load_tokenizer
    from tsugiki.train.evaluate import cut_windows, evaluate
    from tsugiki.train.progress import RunProgress

    windows = cut_windows(read_documents(data))
    base, tokenizer = load_model(model).to(default_device()), load_tokenizer(model)
    if adapter is not None:
        load_adapter(base, adapter, allow_other_base=allow_other_base)
    with RunProgress().stage("evaluating", len(windows)) as advance:
        result = evaluate(base, tokenizer, windows, advance)
    figures = result.to_json()
    if as_json:
        typer.echo(json.dumps({"model": model, "adapter": str(adapter) if adapter else None, **figures}))
        return
    table = Table(show_header=False)
    for name, value in figures.items():
        table.add_row(name, f"{value:,.4f}" if isinstance(value, float) else str(value))
    Console(highlight=False).print(table)
