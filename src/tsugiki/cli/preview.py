"""`tsugiki preview`."""

from pathlib import Path
from typing import Annotated, Any

import typer


def preview_command(
    config: Annotated[Path | None, typer.Argument(help="A YAML file of a run's settings; flags win over it.")] = None,
    model: Annotated[str | None, typer.Option(help="'embedded', a model folder, a GGUF file, or a hub id.")] = None,
    data: Annotated[
        str | None, typer.Option(help="A .txt, .jsonl, .csv or .parquet file, a folder, or a dataset's id.")
    ] = None,
    held_out: Annotated[
        str | None, typer.Option(help="A share of the text (0.1), a file, or a condition such as author=….")
    ] = None,
    assistant_turns: Annotated[str | None, typer.Option(help="Answers to learn: all, or last.")] = None,
    block_size: Annotated[int | None, typer.Option(help="Tokens a row (512, or the model's context).")] = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows to show.")] = 3,
    html: Annotated[Path | None, typer.Option(help="Write the preview as a page as well.")] = None,
) -> None:
    """Show what will be learned before a run starts: its first rows, counts, and the time it would take."""
    from tsugiki.cli.train import number_or_text
    from tsugiki.errors import TsugikiError
    from tsugiki.train.config import load_config

    given: dict[str, Any] = {
        "model": model,
        "data": data,
        "held_out": number_or_text(held_out),
        "assistant_turns": assistant_turns,
        "block_size": block_size,
        "out": "preview" if config is None else None,  # a run needs a folder; a preview writes none
    }
    settings = load_config(config, {name: value for name, value in given.items() if value is not None})
    if html and not html.absolute().parent.is_dir():
        raise TsugikiError(f"{html}: there is no folder {html.parent}; make it first")

    from rich.console import Console

    from tsugiki.io.atomic import write_text
    from tsugiki.io.progress import ProgressDisplay
    from tsugiki.report.preview import to_html, to_terminal
    from tsugiki.train.workflows.preview import preview

    shown = preview(settings, rows, ProgressDisplay())
    console = Console(highlight=False)
    console.print(to_terminal(shown, colours=console.color_system is not None))
    if html:
        write_text(html, to_html(shown))
        typer.echo(f"page: {html}")
