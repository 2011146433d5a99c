"""`tsugiki sweep`."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from tsugiki.cli.flags import with_flags
from tsugiki.cli.interruption import continued_by
from tsugiki.language import _
from tsugiki.train.workflows.compare_config import SweepConfig


@with_flags(SweepConfig, only=["model", "data", "out"])
def sweep_command(
    config: Annotated[Path, typer.Argument(help="YAML file: model, data, out, settings, grid.")],
    settings: Any = None,
) -> None:
    """Train with every combination of some LoRA settings, and show from which rank on nothing is gained.

    Runs that have finished are not repeated; an interrupted sweep continues where it stopped.
    """
    from tsugiki.cli.tables import print_table
    from tsugiki.report.comparison import sweep_sentence, sweep_table, write_sweep_page
    from tsugiki.train.workflows.compare_config import load_sweep
    from tsugiki.train.workflows.sweep import sweep

    sweep_config = load_sweep(config, settings)
    with continued_by(sys.argv[1:]):
        points = sweep(sweep_config)
    page = write_sweep_page(Path(sweep_config.out), points)
    print_table(sweep_table(points), sweep_sentence(points), _("page: {path}").format(path=page))
