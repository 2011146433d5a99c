"""`tsugiki quickstart`."""

from pathlib import Path
from typing import Annotated

import typer


def quickstart_command(
    out: Annotated[Path | None, typer.Option(help="Folder for the adapter. Default: tsugiki-quickstart.")] = None,
) -> None:
    """Train the embedded model to write historical Japanese spelling, offline, in about two minutes."""
    from tsugiki.cli.libraries import import_libraries

    import_libraries("tsugiki.training.run")
    from tsugiki.cli.summary import print_command_after_run, print_summary
    from tsugiki.report.run import write_report
    from tsugiki.training.workflows.quickstart import quickstart

    record = quickstart(out)
    print_summary(record, write_report(record.folder()))
    print_command_after_run(record)
