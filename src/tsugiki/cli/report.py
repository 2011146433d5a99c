"""`tsugiki report`."""

from pathlib import Path
from typing import Annotated

import typer


def report_command(
    folder: Annotated[Path, typer.Argument(help="Folder of a run, which may still be running.")],
) -> None:
    """Regenerate the page of a run, report.html, from its record."""
    from tsugiki.report.run import write_report

    typer.echo(str(write_report(folder)))
