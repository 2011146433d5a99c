"""`tsugiki report`."""

from pathlib import Path
from typing import Annotated

import typer


def report_command(
    folder: Annotated[Path, typer.Argument(help="A run's folder; the run may be going on.")],
) -> None:
    """Write a run's page, report.html, anew from its record."""
    from tsugiki.report.run import write_report

    typer.echo(str(write_report(folder)))
