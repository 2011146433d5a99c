"""`tsugiki quickstart`."""

from pathlib import Path
from typing import Annotated

import typer


def quickstart_command(
    out: Annotated[Path | None, typer.Option(help="Folder for the adapter. Default: tsugiki-quickstart.")] = None,
) -> None:
    """Train the embedded model to write historical Japanese spelling, offline, in about two minutes."""
    from tsugiki.cli.libraries import import_libraries

    import_libraries("tsugiki.train.run")
    from tsugiki.cli.summary import print_summary, say_what_to_read
    from tsugiki.report.run import write_report
    from tsugiki.train.workflows.quickstart import quickstart

    record = quickstart(out)
    print_summary(record, write_report(record.folder()))
    say_what_to_read(record)
