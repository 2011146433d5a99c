"""Commands that measure and show: `tsugiki eval`, `methods` and `report`."""

from pathlib import Path
from typing import Annotated

import typer

from tsugiki.cli.fast_start import import_libraries
from tsugiki.cli.flags import FlagsOf, Given
from tsugiki.cli.terminal import print_command_after_trying, print_next_command, print_table
from tsugiki.language import _


def evaluate_command(*, options: Annotated[Given, FlagsOf("tsugiki.functions.evaluate")], json_: bool = False) -> None:
    """Show loss, perplexity and bits per character of models and adapters on the same text.

    With --questions, show the share of questions that they answer correctly; with --pairs, how often
    they prefer the better of two answers.

    Args:
        json_: Print one JSON object per line.

    Examples:
        tsugiki eval --adapter runs/ichiyo --data other.txt
        tsugiki eval --model embedded --adapter runs/a --adapter runs/b --data other.txt
        tsugiki eval --model USER/NAME --questions questions.jsonl --json
    """
    import_libraries()
    from tsugiki.functions import evaluate

    results = evaluate(**options)
    if json_:
        for line in results.json_lines():
            typer.echo(line)
    else:
        table, notes = results.table()
        print_table(table, *notes)
        adapters, models = options["adapter"], options["model"]
        print_command_after_trying(adapters[0] if adapters else None, models[0] if models else None)


def methods_command(
    name: str | None = None,
    *,
    model: str = "embedded",
) -> None:
    """List the methods to adapt a model, describe one of them, or list the layers that LoRA grafts.

    Args:
        name: Describe this method and its settings; 'targets': list the layers that LoRA grafts by default; without
            it, list all methods.
        model: Model whose parameters or layers are counted: 'embedded', a folder, or a hub id.

    Examples:
        tsugiki methods
        tsugiki methods dora
        tsugiki methods targets --model USER/NAME
    """

    import_libraries("tsugiki.report.methods")
    from tsugiki.report.methods import describe_method, methods_table

    if name is None:
        print_table(
            methods_table(model),
            _("trainable parameters: of {model}, with default settings", model=model),
            _("tsugiki methods NAME describes one method"),
            _("tsugiki methods targets lists the layers that LoRA grafts"),
        )
        return
    if name == "targets":
        from tsugiki.report.methods import targets_table

        table, lines = targets_table(model)
        print_table(table, *lines)
        print_next_command("preview", "--model", model, "--data", "TEXT")
        return
    text, settings, notes = describe_method(name, model)
    typer.echo(text)
    if settings.rows:
        print_table(settings)
    for note in notes:
        typer.echo(note)
    print_next_command("preview", "--model", model, "--method", name, "--data", "TEXT")


def report_command(
    folder: Path,
) -> None:
    """Regenerate the page of a run, report.html, from its record.

    Args:
        folder: Folder of a run, which may still be running.

    Examples:
        tsugiki report runs/ichiyo
    """
    from tsugiki.cli.summary import print_command_after_run
    from tsugiki.report.run import write_report
    from tsugiki.training.record.run_record import read_record

    typer.echo(str(write_report(folder)))
    if (record := read_record(folder)).status == "finished":
        print_command_after_run(record, folder)
    else:
        print_next_command("train", "--resume", str(folder))
