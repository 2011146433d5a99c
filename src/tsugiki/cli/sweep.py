"""`tsugiki sweep`."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from tsugiki.cli.flags import with_flags
from tsugiki.cli.interruption import continued_by
from tsugiki.training.workflows.workflow_settings import SweepConfig


@with_flags(SweepConfig, only=["model", "data", "out"])
def sweep_command(
    config: Annotated[Path, typer.Argument(help="YAML file: model, data, out, settings, grid.")],
    settings: Any = None,
) -> None:
    """Train with every combination of some LoRA settings, and show from which rank on nothing is gained.

    Runs that have finished are not repeated; an interrupted sweep continues where it stopped.
    """
    from tsugiki.cli.checks import check_settings
    from tsugiki.training.workflows.workflow_settings import load_sweep

    sweep_config = load_sweep(config, settings)
    check_settings({**sweep_config.settings, **sweep_config.model_dump(include={"model", "data", "out"})})

    from tsugiki.cli.libraries import import_libraries

    import_libraries("tsugiki.training.run")
    from tsugiki.cli.summary import print_runs
    from tsugiki.report.comparison import sweep_sentence, sweep_table, write_sweep_page
    from tsugiki.training.workflows.compare import sweep

    with continued_by(sys.argv[1:]):
        points = sweep(sweep_config)
    out = Path(sweep_config.out)
    best = min(points, key=lambda point: point.loss)
    best_settings = sweep_config.runs()[best.name][1]
    print_runs(sweep_table(points), sweep_sentence(points), write_sweep_page(out, points), best_settings, out)
