"""`tsugiki sweep`."""

from pathlib import Path
from typing import Annotated

import typer


def sweep_command(
    config: Annotated[Path, typer.Argument(help="A YAML file: model, data, out, settings, grid.")],
    out: Annotated[str | None, typer.Option(help="A folder for the runs; wins over the file's.")] = None,
) -> None:
    """Try a grid of LoRA settings (ranks, alphas, learning rates, layers) and show where rank stops paying.

    Runs that are finished are taken as they are; an interrupted sweep goes on where it was.
    """
    from tsugiki.cli.tables import print_table
    from tsugiki.report.methods import sweep_sentence, sweep_table, write_sweep_page
    from tsugiki.train.workflows.compare_config import load_sweep
    from tsugiki.train.workflows.sweep import sweep

    settings = load_sweep(config, out)
    points = sweep(settings)
    page = write_sweep_page(Path(settings.out), points)
    print_table(sweep_table(points), sweep_sentence(points), f"page: {page}")
