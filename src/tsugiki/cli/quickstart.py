"""`tsugiki quickstart`."""

from pathlib import Path
from typing import Annotated

import typer

from tsugiki.language import _


def quickstart_command(
    out: Annotated[Path | None, typer.Option(help="Folder for the adapter. Default: tsugiki-quickstart.")] = None,
) -> None:
    """Train the embedded model to write historical Japanese spelling, offline, in about two minutes."""
    from tsugiki.cli.summary import print_summary
    from tsugiki.report.run import write_report
    from tsugiki.train.workflows.quickstart import quickstart

    record = quickstart(out)
    folder = record.folder()
    print_summary(record, write_report(folder))
    typer.echo(
        _("next: tsugiki generate --model embedded --adapter {folder} --prompt '{prompt}'").format(
            folder=folder, prompt=record.config.prompts[0]
        )
    )
