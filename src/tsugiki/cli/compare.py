"""`tsugiki compare`."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from tsugiki.cli.flags import with_flags
from tsugiki.cli.interruption import continued_by
from tsugiki.training.workflows.workflow_settings import ComparisonConfig


@with_flags(ComparisonConfig, only=["model", "data", "out"])
def compare_command(
    config: Annotated[Path, typer.Argument(help="YAML file: model, data, out, settings, methods.")],
    settings: Any = None,
) -> None:
    """Train with several methods on the same data, and show the results in one table.

    Runs that have finished are not repeated; an interrupted comparison continues where it stopped.
    """
    from tsugiki.cli.checks import check_settings
    from tsugiki.training.workflows.workflow_settings import load_comparison

    comparison = load_comparison(config, settings)
    check_settings({**comparison.settings, **comparison.model_dump(include={"model", "data", "out"})})

    from tsugiki.cli.libraries import import_libraries

    import_libraries("tsugiki.training.run")
    from tsugiki.cli.summary import print_runs
    from tsugiki.report.comparison import comparison_sentence, comparison_table, write_comparison_page
    from tsugiki.training.workflows.compare import compare, comparison_rows

    with continued_by(sys.argv[1:]):
        records = compare(comparison)
    rows, out = comparison_rows(records), Path(comparison.out)
    page = write_comparison_page(out, rows, records)
    best = min(rows, key=lambda row: row.loss_after)
    print_runs(comparison_table(rows), comparison_sentence(rows, records), page, comparison.runs()[best.name], out)
