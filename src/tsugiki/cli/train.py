"""`tsugiki train`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from tsugiki.cli.flags import with_flags, yaml_value
from tsugiki.cli.interruption import continued_by
from tsugiki.cli.processes import Processes, start_processes
from tsugiki.errors import TsugikiError
from tsugiki.language import _
from tsugiki.ranks import is_main_process
from tsugiki.train.config import RunConfig

_STAGES = "stages"
"""The section of a file that trains in stages (see `train.workflows.stages`)."""


@with_flags(RunConfig, exclude=["method_config"])
def train_command(
    config: Annotated[Path | None, typer.Argument(help="YAML file of settings. Flags override it.")] = None,
    settings: Any = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Setting of the method as NAME=VALUE (`tsugiki methods NAME`); can be repeated.",
            rich_help_panel="Method",
        ),
    ] = None,
    as_chapter: Annotated[
        bool,
        typer.Option(
            "--as-chapter",
            help="Defaults of the textbook chapter: r 8, learning rate 1e-4, 16 rows per step, the last step is kept.",
            rich_help_panel="Schedule",
        ),
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --out.", rich_help_panel="Output")
    ] = False,
    print_config: Annotated[
        bool,
        typer.Option(
            "--print-config",
            help="Print all settings as a commented YAML file, with those that are given, and stop.",
            rich_help_panel="Output",
        ),
    ] = False,
    processes: Processes = 1,
) -> None:
    """Train an adapter, or a whole model, on texts."""
    from tsugiki.cli.checks import check_new_folder, check_settings
    from tsugiki.train.config import CHAPTER, RunConfig, load_config, merged_settings, read_yaml

    method_settings, preset = dict(map(_setting, set_ or [])), CHAPTER if as_chapter else {}
    if print_config:
        from tsugiki.cli.settings_file import settings_text

        typer.echo(settings_text(RunConfig, merged_settings(config, settings, method_settings, preset)), nl=False)
        return
    in_file = read_yaml(config) if config is not None else {}
    if config is not None and _STAGES in in_file:
        if set_ or as_chapter:
            raise TsugikiError(_("{path} has stages: write the settings of each into the file").format(path=config))
        _train_in_stages({**in_file, **settings}, config)
        return
    given = {**in_file, **settings}
    check_settings(given)
    if not resume:
        check_new_folder(str(given["out"]))

    from tsugiki.cli.summary import print_summary
    from tsugiki.report.run import write_report
    from tsugiki.train.run import train

    run_config = load_config(config, settings, method_settings, preset)
    if start_processes(processes):
        return
    with continued_by(["train", "--resume", run_config.out]):
        record = train(run_config, resume=resume)
    if is_main_process():
        print_summary(record, write_report(Path(run_config.out)))


def _train_in_stages(settings: dict[str, Any], path: Path) -> None:
    from tsugiki.cli.tables import print_table
    from tsugiki.report.comparison import stages_table
    from tsugiki.report.run import write_report
    from tsugiki.train.workflows.stages import run_stages

    records = run_stages(settings, path)
    pages = [write_report(record.folder()) for record in records]
    print_table(
        stages_table(records),
        _("adapter of the last stage: {folder}; page: {page}").format(folder=records[-1].folder(), page=pages[-1]),
    )


def _setting(text: str) -> tuple[str, Any]:
    """Return name and value from NAME=VALUE."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise TsugikiError(_("--set {text}: write NAME=VALUE, such as num_virtual_tokens=16").format(text=text))
    return name.strip(), yaml_value(f"--set {name}", value)
