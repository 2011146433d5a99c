"""The option `--processes`, which starts a command in several processes."""

import sys
from typing import Annotated, TypeAlias

import typer

from tsugiki.ranks import several_processes

Processes: TypeAlias = Annotated[
    int,
    typer.Option(
        min=1,
        help="Processes on this machine that share the work, such as one for each GPU.",
        rich_help_panel="Machine",
    ),
]


def start_processes(count: int) -> bool:
    """Run this command in `count` processes, if it should run in several and has not been started in several already.

    Returns:
        False if nothing was started, so that this process does the work itself.

    Raises:
        SystemExit: the processes have failed.
    """
    if count == 1 or several_processes():
        return False
    from tsugiki.training.processes import launch

    status = launch(count, sys.argv[1:])
    if status:
        raise SystemExit(status)
    return True
