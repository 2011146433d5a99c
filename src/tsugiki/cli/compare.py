"""`tsugiki compare`."""

from pathlib import Path
from typing import Annotated

import typer


def compare_command(
    config: Annotated[Path, typer.Argument(help="A YAML file: model, data, out, settings, methods.")],
    data: Annotated[
        str | None, typer.Option(help="A .txt, .jsonl, .csv or .parquet file, a folder, or a dataset's id; wins too.")
    ] = None,
    out: Annotated[str | None, typer.Option(help="A folder for the runs; wins over the file's.")] = None,
) -> None:
    """Run several methods on one budget and one held-out text, and put them into one table.

    Runs that are finished are taken as they are; an interrupted comparison goes on where it was.
    """
    from tsugiki.cli.tables import print_table
    from tsugiki.report.methods import comparison_table, write_comparison_page
    from tsugiki.train.workflows.compare import compare, comparison_rows
    from tsugiki.train.workflows.compare_config import load_comparison

    settings = load_comparison(config, out, data)
    records = compare(settings)
    table = comparison_rows(records)
    page = write_comparison_page(Path(settings.out), table, records)
    print_table(comparison_table(table), "in brackets 95 % intervals over documents", f"page: {page}")
