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
from tsugiki.training.config import RunConfig


@with_flags(RunConfig, exclude=["method_config"])
def train_command(
    config: Annotated[
        Path | None,
        typer.Argument(help="YAML file of settings, which flags override; with --resume, the folder of a run."),
    ] = None,
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
        bool,
        typer.Option(
            "--resume",
            help="Continue a run: `--resume FOLDER` needs nothing else. A finished run goes on with larger --epochs.",
            rich_help_panel="Output",
        ),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the run in --out.", rich_help_panel="Output")
    ] = False,
    fit: Annotated[
        bool,
        typer.Option(
            "--fit",
            help="Take the fastest way to run that fits in the memory (`tsugiki plan`).",
            rich_help_panel="Machine",
        ),
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
    from tsugiki.cli.resuming import go_to_working_directory, named_folder, resumed_settings
    from tsugiki.training.config import CHAPTER, RunConfig
    from tsugiki.training.config_files import load_config, merged_settings, read_yaml

    method_settings, preset = dict(map(_setting, set_ or [])), CHAPTER if as_chapter else {}
    if print_config:
        from tsugiki.cli.settings_file import settings_text

        typer.echo(settings_text(RunConfig, merged_settings(config, settings, method_settings, preset)), nl=False)
        return
    folder = named_folder(config, resume)
    path = config if folder is None else None
    in_file = read_yaml(path) if path is not None else {}
    if resume and fit:
        raise TsugikiError(
            _(
                "--fit chooses the settings of a new run, and a run that is resumed keeps its own: leave --fit out; "
                "--recompute blocks and --micro-batch-size 1 make it smaller"
            )
        )
    given = {**in_file, **settings}
    out = folder or (Path(given["out"]) if given.get("out") else None)
    if not resume:
        check_settings(given)
        if not overwrite:
            check_new_folder(str(given["out"]))
    elif out is None:
        raise TsugikiError(_("--resume needs the folder of a run: tsugiki train --resume runs/text"))

    if start_processes(processes):
        return
    from tsugiki.cli.libraries import import_libraries

    import_libraries("tsugiki.training.run")
    from tsugiki.training.run import train

    words = ["train", "--resume", str(out)]
    with continued_by(words):
        if resume:
            assert out is not None
            merged = merged_settings(path, settings, method_settings, preset)
            run_config = resumed_settings(RunConfig, go_to_working_directory(out) if folder else out, merged, path)
        else:
            run_config = load_config(path, settings, method_settings, preset)
            run_config = _fitted(run_config) if fit else run_config
        record = train(run_config, resume=resume, overwrite=overwrite)
    if is_main_process():
        from tsugiki.cli.summary import print_command_after_run, print_summary
        from tsugiki.report.run import write_report

        print_summary(record, write_report(Path(run_config.out)))
        print_command_after_run(record)


def _fitted(config: RunConfig) -> RunConfig:
    """Return the settings with the fastest option that fits in the memory, and print this option."""
    from tsugiki.cli.tables import print_line
    from tsugiki.io.progress import ProgressDisplay
    from tsugiki.training.planning.fit import fitted
    from tsugiki.training.planning.plan import plan_run

    with ProgressDisplay().stage(_("measuring blocks of the model"), None):
        plan = plan_run(config, None)
    chosen = fitted(config, plan)
    print_line(
        _("--fit: base_dtype {dtype}, recompute {recompute}, micro_batch_size {rows}").format(
            dtype=plan.options[0].base_dtype, recompute=chosen.recompute, rows=chosen.micro_batch_size
        )
    )
    return chosen


def _setting(text: str) -> tuple[str, Any]:
    """Return name and value from NAME=VALUE."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise TsugikiError(_("--set {text}: write NAME=VALUE, such as num_virtual_tokens=16").format(text=text))
    return name.strip(), yaml_value(f"--set {name}", value)
