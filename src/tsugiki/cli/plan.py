"""`tsugiki plan`."""

import json
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tsugiki.cli.flags import settings_of, with_flags
from tsugiki.language import _
from tsugiki.training.config import RunConfig

if TYPE_CHECKING:
    from tsugiki.training.planning.plan import Option

_UNSET = "-"
"""Value of settings that a run requires and a plan does not."""


@with_flags(RunConfig, exclude=["method_config"])
def plan_command(
    config: Annotated[Path | None, typer.Argument(help="YAML file of a run's settings. Flags override it.")] = None,
    settings: Any = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a run would need: memory, disk and time for each way to run it, and the fastest that fits.

    Of a model on the hub, only the config and the headers of the weights are downloaded. The exit status is 1 if
    nothing fits.
    """
    from tsugiki.cli.libraries import import_libraries

    import_libraries("tsugiki.training.run")  # so that this process uses as much memory as a run
    from tsugiki.training.config_files import load_config

    given = dict(settings)
    if config is None:
        settings = {"data": _UNSET, "out": _UNSET, **settings}
    run_config = load_config(config, settings)
    from tsugiki.cli.tables import print_line, print_table
    from tsugiki.io.progress import ProgressDisplay
    from tsugiki.report.plan import plan_lines, plan_table
    from tsugiki.training.pack_data import rows_of_data
    from tsugiki.training.planning.plan import plan_run, smallest_need

    progress = ProgressDisplay()
    rows = None
    if config is not None or "data" in given:
        rows = rows_of_data(run_config, progress)
    with progress.stage(_("measuring blocks of the model"), None):
        plan = plan_run(run_config, rows)
    command = _command(config, given, plan.options[0])
    if as_json:
        typer.echo(json.dumps({**asdict(plan), "command": command}))
    else:
        for line in plan_lines(plan):
            print_line(line)
        fits = plan.options[0].fits
        print_table(plan_table(plan), _("run: {command}").format(command=command) if fits else smallest_need(plan))
    if not plan.options[0].fits:
        raise typer.Exit(1)


def _command(path: Path | None, given: dict[str, Any], chosen: "Option") -> str:
    """Return the command that trains with the chosen option and the given settings."""
    values: dict[str, Any] = {
        "data": "TEXT",
        "out": "RUN",
        **given,
        "base_dtype": chosen.base_dtype,
        "recompute": chosen.recompute,
        "micro_batch_size": chosen.micro_batch_size,
    }
    words = ["tsugiki", "train", *([str(path)] if path is not None else [])]
    for setting in settings_of(RunConfig, exclude=["method_config"]):
        value: Any = values
        for key in setting.path:
            value = value.get(key) if isinstance(value, dict) else None
        if path is not None and value in ("TEXT", "RUN"):
            continue
        for item in value if isinstance(value, list | tuple) else [value]:
            if isinstance(item, bool):
                words.append(setting.flag if item else f"--no-{setting.flag[2:]}")
            elif item is not None:
                words += [setting.flag, str(item)]
    return shlex.join(words)
