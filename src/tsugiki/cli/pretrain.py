"""`tsugiki pretrain`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from tsugiki.cli.flags import with_flags
from tsugiki.cli.interruption import continued_by
from tsugiki.cli.processes import Processes, start_processes
from tsugiki.ranks import is_main_process
from tsugiki.training.workflows.workflow_settings import PretrainConfig


@with_flags(PretrainConfig)
def pretrain_command(
    config: Annotated[
        Path, typer.Argument(help="YAML file of settings, which flags override; with --resume, the folder of a run.")
    ],
    settings: Any = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Continue a run: `--resume FOLDER` needs nothing else.", rich_help_panel="Output"
        ),
    ] = False,
    processes: Processes = 1,
) -> None:
    """Train a model from scratch: first its tokenizer, then its weights."""
    from tsugiki.cli.libraries import import_libraries

    import_libraries("tsugiki.training.run")
    from tsugiki.cli.resuming import go_to_working_directory, named_folder, resumed_settings
    from tsugiki.cli.summary import print_command_after_run, print_summary
    from tsugiki.report.run import write_report
    from tsugiki.training.workflows.pretrain import pretrain
    from tsugiki.training.workflows.workflow_settings import load_pretrain_config

    folder = named_folder(config, resume)
    if start_processes(processes):
        return
    if folder is None:
        pretrain_config = load_pretrain_config(config, settings)
        words = ["pretrain", str(config), "--out", pretrain_config.out, "--resume"]
    else:
        pretrain_config = resumed_settings(PretrainConfig, go_to_working_directory(folder), settings, None)
        words = ["pretrain", "--resume", str(folder)]
    with continued_by(words):
        record = pretrain(pretrain_config, resume=resume)
    if is_main_process():
        print_summary(record, write_report(Path(pretrain_config.out)))
        print_command_after_run(record)
