"""Commands that train: `tsugiki train`, `quickstart` and `sweep`."""

import os
import shlex
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tsugiki.cli.before_a_run import check_new_folder, check_settings
from tsugiki.cli.fast_start import import_libraries
from tsugiki.cli.flags import RUN_CONFIG, FlagsOf, Given, settings_text, words_of, yaml_value
from tsugiki.cli.launcher import is_main_process, several_processes
from tsugiki.cli.terminal import print_line, print_next_command
from tsugiki.errors import Interrupted, TsugikiError
from tsugiki.io.file_names import RECORD_FILE
from tsugiki.io.system import is_verbose
from tsugiki.language import JAPANESE, _, language

if TYPE_CHECKING:
    from tsugiki.training.record.run_record import RunRecord
    from tsugiki.training.settings.config import RunConfig

_SHARED = ("model", "data", "out")
"""The settings of a sweep that have a flag."""
_SWEEP = "tsugiki.training.settings.sweep"
_LENGTH = ("epochs", "max_steps", "minutes")
_SUFFIXES = (".yaml", ".yml")


def train_command(
    config: Path | None = None,
    *,
    settings: Annotated[Given, FlagsOf(RUN_CONFIG, without=("method_config",))],
    set_: Annotated[list[str] | None, typer.Option(rich_help_panel="Method", hidden=True)] = None,
    as_chapter: Annotated[bool, typer.Option(rich_help_panel="Schedule", hidden=True)] = False,
    resume: Annotated[bool, typer.Option(rich_help_panel="Output")] = False,
    overwrite: Annotated[bool, typer.Option(rich_help_panel="Output")] = False,
    fit: Annotated[bool, typer.Option(rich_help_panel="Machine", hidden=True)] = False,
    print_config: Annotated[bool, typer.Option(rich_help_panel="Output")] = False,
    processes: Annotated[int, typer.Option(min=1, rich_help_panel="Machine", hidden=True)] = 1,
) -> None:
    """Train an adapter, or a whole model, on texts.

    Args:
        config: YAML file of settings, which flags override; with --resume, the folder of a run.
        set_: Setting of the method as NAME=VALUE (`tsugiki methods NAME`); can be repeated.
        as_chapter: Defaults of the textbook chapter: r 8 on c_attn and c_proj of a GPT-2, learning rate 1e-4, 16 rows
            per step, the last step is kept.
        resume: Continue a run: `--resume FOLDER` needs nothing else. A finished run goes on with larger --epochs.
        overwrite: Replace the run in --out.
        fit: Take the fastest way to run that fits in the memory (`tsugiki plan`).
        print_config: Print all settings as a commented YAML file, with those that are given, and stop.
        processes: Processes on this machine that share the work, such as one for each GPU.

    Examples:
        tsugiki train --model embedded --data ichiyo.jsonl --out runs/ichiyo
        tsugiki train --model embedded --data ichiyo.jsonl --out runs/short --minutes 10 --prompts 秋の夜、
        tsugiki train --model USER/NAME --data chat.jsonl --out runs/chat --method dora --r 8
        tsugiki train --model USER/NAME --data prompts.jsonl --out runs/sums --reward field:answer
        tsugiki train run.yaml --learning-rate 2e-4
        tsugiki train --resume runs/ichiyo --epochs 6
        tsugiki train --print-config
    """
    from tsugiki.training.settings.config import CHAPTER, RunConfig
    from tsugiki.training.settings.files import load_config, merged_settings, read_yaml

    method_settings, preset = dict(map(_setting, set_ or [])), CHAPTER if as_chapter else {}
    if print_config:
        typer.echo(settings_text(RunConfig, merged_settings(config, settings, method_settings, preset)), nl=False)
        return
    folder = named_folder(config, resume)
    path = config if folder is None else None
    in_file = read_yaml(path) if path is not None else {}
    if resume and fit:
        raise TsugikiError(
            "--fit chooses the settings of a new run, and a run that is resumed keeps its own: leave --fit out; "
            "--recompute blocks and --micro-batch-size 1 make it smaller"
        )
    given = {**in_file, **settings}
    out = folder or (Path(given["out"]) if given.get("out") else None)
    if not resume:
        check_settings(given)
        if not overwrite:
            check_new_folder(str(given["out"]))
    elif out is None:
        raise TsugikiError("--resume needs the folder of a run: tsugiki train --resume runs/text")

    if start_processes(processes):
        return

    import_libraries("tsugiki.training.run.stages")
    from tsugiki.preference.rewards import absolute_programs
    from tsugiki.training.run.reward import train_by_reward
    from tsugiki.training.run.stages import train as train_texts

    if rules := settings.get("reward"):
        settings["reward"] = absolute_programs(rules)  # a run that is resumed goes to the directory where it began
    words = ["train", "--resume", str(out), *(word for rule in rules or () for word in ("--reward", rule))]
    with continued_by(words, out):
        if resume:
            assert out is not None
            merged = merged_settings(path, settings, method_settings, preset)
            run_config = resumed_settings(go_to_working_directory(out) if folder else out, merged, path)
        else:
            run_config = load_config(path, settings, method_settings, preset)
            run_config = _fitted(run_config) if fit else run_config
        train = train_by_reward if run_config.reward else train_texts
        record = train(run_config, resume=resume, overwrite=overwrite)
    _show(record)


def _show(record: "RunRecord") -> None:
    """Write the page of a run, and print its results and the next command, in the main process."""
    if is_main_process():
        from tsugiki.cli.summary import print_command_after_run, print_summary
        from tsugiki.report.run import write_report

        print_summary(record, write_report(record.folder()))
        print_command_after_run(record, record.folder())


def _fitted(config: "RunConfig") -> "RunConfig":
    """Return the settings with the fastest option that fits in the memory, and print this option."""
    from tsugiki.io.progress import ProgressDisplay
    from tsugiki.training.run.plan import fitted, plan_run

    with ProgressDisplay().stage(_("measuring blocks of the model"), None):
        plan = plan_run(config, None)
    chosen = fitted(config, plan)
    message = _(
        "--fit: base_dtype {dtype}, recompute {recompute}, micro_batch_size {rows}",
        dtype=plan.options[0].base_dtype,
        recompute=chosen.recompute,
        rows=chosen.micro_batch_size,
    )
    print_line(message)
    return chosen


def _setting(text: str) -> tuple[str, Any]:
    """Return name and value from NAME=VALUE."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise TsugikiError("--set {text}: write NAME=VALUE, such as num_virtual_tokens=16", text=text)
    return name.strip(), yaml_value(f"--set {name}", value)


def start_processes(count: int) -> bool:
    """Run this command in `count` processes, unless it is one or this process is one of several already.

    False if nothing was started, so that this process does the work itself.
    """
    if count == 1 or several_processes():
        return False
    from tsugiki.training.tools.processes import launch

    status = launch(count, sys.argv[1:])
    if status:
        raise SystemExit(status)
    return True


@contextmanager
def continued_by(words: Sequence[str], out: Path | None = None) -> Iterator[None]:
    """Add the command that continues the work to the message if a signal ends the block.

    Nothing is added if there is no run in the folder `out` yet.
    """
    try:
        yield
    except (Interrupted, KeyboardInterrupt) as stop:
        if out is not None and not (out / RECORD_FILE).exists():
            raise
        state = (stop.state or _("finished work is kept")) if isinstance(stop, Interrupted) else _("stopped at once")
        number = stop.number if isinstance(stop, Interrupted) else signal.SIGINT
        command = shlex.join(["tsugiki", *words])
        raise Interrupted(number, _("{state}; to continue: {command}", state=state, command=command)) from None


def named_folder(argument: Path | None, resume: bool) -> Path | None:
    """Return the folder of a run, if the command's argument names one instead of a file of settings."""
    if argument is None or (argument.suffix in _SUFFIXES and not argument.is_dir()):
        return None
    if argument.is_dir() and not resume:
        raise TsugikiError("{folder} is a folder; --resume {folder} continues the run in it", folder=argument)
    if not resume:
        return None
    return argument.parent if argument.name == RECORD_FILE else argument


def go_to_working_directory(folder: Path) -> Path:
    """Change to the directory in which a run was started, so that its relative paths mean the same.

    Return the run's folder as a path that is valid there.
    """
    from tsugiki.training.run.resume import recorded_run

    recorded = recorded_run(folder).working_directory
    if recorded is None or not Path(recorded).is_dir() or Path(recorded).samefile(Path()):
        return folder
    absolute = folder.absolute()
    os.chdir(recorded)
    return absolute


def resumed_settings(folder: Path, given: Mapping[str, Any], path: Path | None) -> "RunConfig":
    """Return the settings of a run that is continued: those of its record, replaced by those that are given.

    Errors name the file `path`, if the given settings are from one.
    """
    from tsugiki.training.run.resume import recorded_settings
    from tsugiki.training.settings.config import RunConfig
    from tsugiki.training.settings.files import validated

    recorded = recorded_settings(folder)
    if recorded.get("reward") and "reward" not in given:
        from tsugiki.preference.rewards import refuse_programs

        refuse_programs(recorded["reward"], folder)
    if any(name in given for name in _LENGTH):
        recorded = {name: value for name, value in recorded.items() if name not in _LENGTH}
    merged = {**recorded, **given, "out": str(folder)}
    for section in ("lora", "method_config"):
        if section in recorded and section in given:
            merged[section] = {**recorded[section], **given[section]}
    return validated(RunConfig, merged, path)


def quickstart_command(
    *,
    questions: bool = False,
    out: Path | None = None,
) -> None:
    """Train the embedded model to write as in old laws and telegrams, in katakana, offline, in about a minute.

    With --questions, a chat model learns twenty facts of an invented place, in your language, in one to two minutes.

    Args:
        questions: Learn to answer: about a bakery, with SmolLM2-135M-Instruct; with --lang ja about a library, with the
            embedded model.
        out: Folder for the adapter. Default: tsugiki-quickstart, or tsugiki-questions.

    Examples:
        tsugiki quickstart
        tsugiki quickstart --questions
        tsugiki quickstart --questions --out my-first-adapter
    """
    if out is not None:
        check_new_folder(str(out))
    from tsugiki.base.recommended import chat_base

    base = "embedded" if not questions or language() == JAPANESE else chat_base()  # an error comes before the imports
    import_libraries("tsugiki.training.run.stages")
    from tsugiki.training.run.quickstart import questions_config, quickstart

    if questions:
        _quickstart_of_questions(questions_config(base, out))
    else:
        _show(quickstart(out))


def _quickstart_of_questions(config: "RunConfig") -> None:
    """Train with these settings; print the equivalent command, answers before and after, and how many are right."""
    from tsugiki.cli.summary import print_adapter, print_asked
    from tsugiki.report.run import write_report
    from tsugiki.training.run.quickstart import ask_unseen
    from tsugiki.training.run.stages import train
    from tsugiki.training.settings.config import RunConfig

    given = config.model_dump(mode="json", exclude_unset=True)
    command = shlex.join(["tsugiki", "train", *words_of(RunConfig, given)])
    if is_verbose():
        print_line(_("the same as: {command}", command=command))
    with continued_by(["train", "--resume", config.out], Path(config.out)):
        record = train(config)
    out = record.folder()
    print_asked(ask_unseen(record))
    print_adapter(record, write_report(out))
    print_next_command("chat", str(out), "--temperature", "0", "--repetition-penalty", "1")


def sweep_command(
    config: Path,
    *,
    settings: Annotated[Given, FlagsOf(f"{_SWEEP}.SweepConfig", only=_SHARED)],
) -> None:
    """Train with several methods, or with every combination of some LoRA settings, and show the results in one table.

    Runs that have finished are not repeated; an interrupted sweep continues where it stopped.

    Args:
        config: YAML file: model, data, out, settings, and either methods or grid.

    Examples:
        tsugiki sweep examples/recipes/twin-methods.yaml --data ichiyo.jsonl
        tsugiki sweep examples/recipes/twin-ranks.yaml --data ichiyo.jsonl --out runs/sweep
    """
    from tsugiki.training.settings.files import load_settings
    from tsugiki.training.settings.sweep import SweepConfig

    sweep_config = load_settings(SweepConfig, config, settings)
    check_settings({**sweep_config.settings, **sweep_config.model_dump(include=set(_SHARED))})
    import_libraries("tsugiki.training.run.stages")
    from tsugiki.cli.summary import print_sweep
    from tsugiki.report.sweep import write_sweep_page
    from tsugiki.training.run.sweep import sweep

    with continued_by(sys.argv[1:]):
        points = sweep(sweep_config)
    print_sweep(sweep_config, points, write_sweep_page(Path(sweep_config.out), points))
