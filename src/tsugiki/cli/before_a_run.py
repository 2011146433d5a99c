"""Commands before a run: `tsugiki aozora`, `pairs`, `new`, `preview` and `plan`."""

import json
import math
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tsugiki.cli.fast_start import import_libraries
from tsugiki.cli.flags import RUN_CONFIG, FlagsOf, Given, settings_text, words_of
from tsugiki.cli.terminal import print_line, print_lines, print_next_command, print_table
from tsugiki.data.read.aozora import SITE, Kana
from tsugiki.errors import TsugikiError, summarise_list
from tsugiki.io.system import is_verbose
from tsugiki.language import _, counts, ngettext

if TYPE_CHECKING:
    from tsugiki.training.run.plan import Option
    from tsugiki.training.run.preview import Preview
    from tsugiki.training.settings.config import RunConfig


def aozora_command(
    files: list[Path] | None = None,
    *,
    out: Path,
    source: str = SITE,
    author: str | None = None,
    role: str = "author",
    title: str | None = None,
    kana: Kana | None = None,
    skip_missing: bool = False,
    cache: Path | None = None,
) -> None:
    """Convert works of Aozora Bunko to clean text: one JSON line per work, with title, author, text and source.

    Works under copyright are never used. Files of a site are cached, and later runs download only missing ones.

    Args:
        out: JSON-lines file to write; it must not exist.
        files: Downloaded works (.zip, .txt), or folders of these, instead of a site or a mirror.
        source: URL of a site, or a mirror folder that contains cards/.
        author: Full name, such as 夏目漱石.
        role: Role of --author (or of any person) in the work: author, translator (翻訳者), editor, reviser.
        title: The title or a part of it.
        kana: Kana orthography, as the index gives it; if it does not, guessed from the text.
        skip_missing: Skip and count works whose file does not exist. Damaged works are always skipped and listed.
        cache: Folder for the files of a site (default: ~/.cache/tsugiki/aozora)

    Examples:
        tsugiki aozora --author 樋口一葉 --out ichiyo.jsonl
        tsugiki aozora --author 泉鏡花 --kana old --out kyoka.jsonl
        tsugiki aozora --source mirror --title 檸檬 --out lemon.jsonl
        tsugiki aozora 424_ruby_19825.zip downloads --out works.jsonl
    """
    from tsugiki.data.read.aozora.index import Query, parse_role, select
    from tsugiki.data.read.aozora.works import (
        LooseFiles,
        NearCopies,
        open_source,
        read_entries,
        write_works,
    )
    from tsugiki.io.atomic import check_new_file
    from tsugiki.io.progress import ProgressDisplay

    start = time.perf_counter()
    check_new_file(out)  # before works are downloaded
    query = Query(author, title, kana, parse_role(role))
    opened = LooseFiles(files) if files else open_source(source, cache)
    entries = select(opened.entries(), query)
    skipped: list[str] = []
    missing: list[str] = []
    tracked = ProgressDisplay().track(entries, _("works"))
    works = read_entries(opened, tracked, query, skipped.append, missing.append if skip_missing else None)
    copies = NearCopies()
    totals = write_works(copies.collect(works), out)
    seconds = time.perf_counter() - start
    for reason in skipped:
        print(_("skipped {reason}", reason=reason), file=sys.stderr)
    for reason in missing:
        print(_("missing {reason}", reason=reason), file=sys.stderr)
    print(
        _(
            "{works}, {characters}, {unresolved:,} without a code (〓), {skipped:,} skipped, {missing:,} missing, "
            "{seconds:.1f} s, {speed:.0f} works/s -> {out}",
            works=ngettext("{count:,} work", "{count:,} works", totals.works, count=totals.works),
            characters=counts.characters(totals.characters),
            unresolved=totals.unresolved,
            skipped=len(skipped),
            missing=len(missing),
            seconds=seconds,
            speed=totals.works / seconds,
            out=out,
        ),
        file=sys.stderr,
    )
    if groups := copies.groups():
        print(
            ngettext(
                "{count:,} work is there in several editions, such as {names}: with --drop-duplicates, tsugiki train "
                "uses one of them",
                "{count:,} works are there in several editions, such as {names}: with --drop-duplicates, tsugiki train "
                "uses one of each",
                len(groups),
                count=len(groups),
                names=summarise_list(groups[0]),
            ),
            file=sys.stderr,
        )
    print_next_command("preview", "--model", "embedded", "--data", str(out), err=True)


_LISTED = (
    "model", "data", "held_out", "validation", "method", "lora.r", "lora.lora_alpha", "lora.lora_dropout", "minutes",
    "learning_rate", "prompts", "out",
)  # fmt: skip
"""The settings that a new file lists; `tsugiki train --print-config` lists all."""
_TEXTS = ("*.txt", "*.jsonl")
_MINUTES = 10.0


def new_command(
    file: Path | None = None,
    *,
    data: str | None = None,
    model: str | None = None,
    minutes: float | None = None,
    out: str | None = None,
    preview: bool = True,
) -> None:
    """Ask for a text, a base, a time and a folder, show a preview, and write the settings of a run to a YAML file.

    Enter takes the default. Nothing is asked that a flag answers, or if the input is not a terminal.

    Args:
        file: YAML file to write, which must not exist. Default: named after the text.
        data: The text to learn: a file or a folder.
        model: The base model: 'embedded', a model folder, a GGUF file, or a hub id.
        minutes: How many minutes the run may take.
        out: Folder for the adapter.
        preview: Show what would be learned, and how long it takes.

    Examples:
        tsugiki new
        tsugiki new ichiyo.yaml --data ichiyo.jsonl --minutes 20 --no-preview
    """
    from tsugiki.data.read.files import check_data
    from tsugiki.io.atomic import new_file
    from tsugiki.training.settings.config import RunConfig

    interactive = sys.stdin.isatty()
    if data is None and not interactive:
        raise TsugikiError("--data missing: there is no terminal to ask for the text")
    data = _answer(interactive, data, _("Text to learn (file or folder)"), _only_text(), check_data)
    model = _ask_for_base() if model is None and interactive else _answer(False, model, "", "embedded", check_model)
    minutes = _answer(interactive, minutes, _("Minutes that the run may take"), _MINUTES, _check_minutes)
    name = Path(data).stem or "text"
    out = _answer(interactive, out, _("Folder for the adapter"), f"runs/{name}", check_new_folder)
    given = {"model": model, "data": data, "out": out, "minutes": minutes}
    path = file or Path(f"{name}.yaml")
    with new_file(path) as temporary:
        temporary.write_text(settings_text(RunConfig, given, only=_LISTED), encoding="utf-8")
        if preview:
            from tsugiki.training.run.preview import preview as preview_run

            _print_preview(preview_run(RunConfig.model_validate(given), 1), verbose=False)
    print_line(_("settings: {path}", path=path))
    print_next_command("train", str(path))


def _answer(interactive: bool, given: Any, question: str, default: Any, check: Callable[[Any], object]) -> Any:
    """Return the value of a flag, or else the user's answer, or the default if the input is not a terminal."""
    if given is not None or not interactive:
        value = default if given is None else given
        check(value)
        return value
    while True:
        value = typer.prompt(question, default=default, type=str if default is None else type(default))
        try:
            check(value)
        except TsugikiError as error:
            typer.echo(str(error))
        else:
            return value


def _ask_for_base() -> str:
    """Show the recommended bases, and return the name of the user's choice."""
    from tsugiki.base.recommended import describe_base, recommended_bases

    numbered = {str(number): base for number, base in enumerate(recommended_bases(), 1)}
    for number, base in numbered.items():
        typer.echo(f"  {number}  {describe_base(base)}")
    question = _("Base model (number, 'embedded', folder, GGUF file or hub id)")
    answer = str(_answer(True, None, question, "embedded", check_model))
    return numbered[answer].name if answer in numbered else answer


def _only_text() -> str | None:
    """Return the text in the working directory, if there is exactly one."""
    texts = [path for pattern in _TEXTS for path in Path().glob(pattern)]
    return str(texts[0]) if len(texts) == 1 else None


def _check_minutes(minutes: float) -> None:
    if not 0 < minutes < math.inf:
        raise TsugikiError("the time is a number of minutes above 0")


def _print_preview(shown: "Preview", verbose: bool) -> None:
    from rich.console import Console

    from tsugiki.report.preview import to_terminal

    console = Console(highlight=False)
    console.print(to_terminal(shown, console.color_system is not None, verbose))


_ROWS = 3  # of a page and of a long preview


def _print_rows(config: "RunConfig", rows: int | None, html: Path | None) -> None:
    from tsugiki.io.atomic import write_text
    from tsugiki.report.preview import to_html
    from tsugiki.training.run.preview import preview

    shown, verbose = preview(config, rows or _ROWS), is_verbose()
    _print_preview(shown if rows or verbose else replace(shown, rows=shown.rows[:1]), verbose)
    if not verbose:
        typer.echo(_("more rows and names: --verbose"))
    if html:
        write_text(html, to_html(shown))
        typer.echo(_("page: {path}", path=html))


def _print_answers(config: "RunConfig", prompts: int, html: Path | None) -> None:
    """Print some prompts of a run that learns by a rule, with answers and their rewards."""
    from tsugiki.report.table import Table
    from tsugiki.training.run.reward import preview_answers

    if html:
        raise TsugikiError("{html}: the answers of a model are shown in the terminal alone", html=html)
    for one in preview_answers(config, prompts):
        rows = [["–" if answer.reward is None else f"{answer.reward:.3g}", answer.text] for answer in one.answers]
        print_lines(one.row.text)
        print_table(Table([_("reward"), _("answer")], rows))


def preview_command(
    config: Path | None = None,
    *,
    settings: Annotated[Given, FlagsOf(RUN_CONFIG, without=("out", "method_config"))],
    rows: Annotated[int | None, typer.Option(min=1)] = None,
    html: Path | None = None,
) -> None:
    """Show the first rows of a run, counts, and the time that it would take, without training.

    With --reward, it shows prompts, answers of the model to them, and their rewards.

    Args:
        config: YAML file of a run's settings. Flags override it.
        rows: Number of rows, or of prompts, to show. Default: 1, or 3 with --verbose, on the page, and of prompts.
            --verbose shows whole rows, and all names of near-duplicates.
        html: HTML file to write the preview to as well, whole.

    Examples:
        tsugiki preview --model embedded --data ichiyo.jsonl
        tsugiki preview run.yaml --rows 5 --html preview.html
    """
    from tsugiki.training.settings.config import RunConfig
    from tsugiki.training.settings.files import load_config, read_yaml

    check_settings({**(read_yaml(config) if config is not None else {}), **settings, "out": "preview"})
    import_libraries("tsugiki.training.run.stages")
    if config is None:
        settings["out"] = "preview"  # required, but nothing is written to it
    run_config = load_config(config, settings)
    if html and not html.absolute().parent.is_dir():
        raise TsugikiError("{html}: the folder {parent} does not exist; create it first", html=html, parent=html.parent)

    if run_config.reward:
        _print_answers(run_config, rows or _ROWS, html)
    else:
        _print_rows(run_config, rows, html)
    if config is None:
        name = Path(run_config.data[0]).stem or "text"
        print_next_command("train", *words_of(RunConfig, {**settings, "out": f"runs/{name}"}))
    else:
        print_next_command("train", str(config), *words_of(RunConfig, settings))


_UNSET = "-"
"""Value of settings that a run requires and a plan does not."""


def plan_command(
    config: Path | None = None,
    *,
    settings: Annotated[Given, FlagsOf(RUN_CONFIG, without=("method_config",))],
    memory: str | None = None,
    json_: bool = False,
) -> None:
    """Show what a run would need: memory, disk and time for each way to run it, and the fastest that fits.

    Of a model on the hub, only the config and the headers of the weights are downloaded. The exit status is 1 if
    nothing fits.

    Args:
        config: YAML file of a run's settings. Flags override it.
        memory: Memory of another machine, such as 8GB, with its --device: cuda need not be here.
        json_: Print JSON.

    Examples:
        tsugiki plan --model USER/NAME
        tsugiki plan --model USER/NAME --data ichiyo.jsonl --block-size 1024 --json
    """

    import_libraries("tsugiki.training.run.stages")  # so that this process uses as much memory as a run
    from tsugiki.training.settings.files import load_config

    given = dict(settings)
    if config is None:
        settings = {"data": _UNSET, "out": _UNSET, **settings}
    run_config = load_config(config, settings)
    from tsugiki.io.formatting import parse_size
    from tsugiki.io.progress import ProgressDisplay
    from tsugiki.report.plan import plan_lines, plan_table
    from tsugiki.training.run.load import rows_of_data
    from tsugiki.training.run.plan import plan_run, smallest_need

    progress = ProgressDisplay()
    rows: tuple[int | None, bool, bool] = None, False, False
    if (config is not None or "data" in given) and not run_config.reward:
        rows = rows_of_data(run_config, progress)
    with progress.stage(_("measuring blocks of the model"), None):
        plan = plan_run(run_config, *rows, memory_size=None if memory is None else parse_size(memory))
    command = _command(config, given, plan.options[0])
    if json_:
        typer.echo(json.dumps({**asdict(plan), "command": command}))
    else:
        for line in plan_lines(plan):
            print_line(line)
        fits = plan.options[0].fits
        print_table(plan_table(plan), _("run: {command}", command=command) if fits else smallest_need(plan))
    if not plan.options[0].fits:
        raise typer.Exit(1)


def _command(path: Path | None, given: Given, chosen: "Option") -> str:
    """Return the command that trains with the chosen option and the given settings."""
    from tsugiki.training.settings.config import RunConfig

    values = {
        **({"data": "TEXT", "out": "RUN"} if path is None else {}),
        **given,
        "base_dtype": chosen.base_dtype,
        "recompute": chosen.recompute,
        "micro_batch_size": chosen.micro_batch_size,
    }
    return shlex.join(["tsugiki", "train", *([str(path)] if path is not None else []), *words_of(RunConfig, values)])


_FLAGS = {"model": "--model", "data": "--data", "out": "--out"}
_PATH = ("/", ".", "~")
"""Prefixes of the names of models that are paths, and not hub ids."""


def check_settings(settings: Mapping[str, Any]) -> None:
    """Check that a run has a model, data and a folder, and that model and data exist."""
    from tsugiki.data.read.files import check_data

    missing = [flag for name, flag in _FLAGS.items() if settings.get(name) in (None, "")]
    if missing:
        raise TsugikiError(
            "{missing} missing: tsugiki train --model embedded --data text.txt --out runs/text, or a YAML file of "
            "settings, which tsugiki new writes",
            missing=", ".join(missing),
        )
    check_model(settings["model"])
    for name in ("data", "retention_data"):
        given = settings.get(name)
        if name == "retention_data" and given == "embedded":  # it comes with Tsugiki
            continue
        if isinstance(given, str) or (isinstance(given, list | tuple) and all(isinstance(text, str) for text in given)):
            check_data(given)


def check_model(model: Any) -> None:
    """Check that a model exists, if its name is a path."""
    if isinstance(model, str) and model.startswith(_PATH) and not Path(model).expanduser().exists():
        raise TsugikiError("no model at {model!r}: there is no such file or folder", model=model)


def check_new_folder(out: str) -> None:
    """Check that a new run can be written into a folder."""
    from tsugiki.io.atomic import check_writable
    from tsugiki.io.run_folder import refuse_earlier_run

    check_writable(Path(out))
    refuse_earlier_run(Path(out))


_ASKED = ("model", "data", "columns", "reward", "reward_settings", "start_from", "system", "chat_template", "seed")


def pairs_command(*, settings: Annotated[Given, FlagsOf(RUN_CONFIG, only=_ASKED)], out: Path) -> None:
    """Sample answers of a model to prompts, score them by a rule, and write the best and the worst as pairs.

    Look at the file, correct it, and train with --preference. `tsugiki train --reward` does the same in rounds.

    Args:
        out: File to write, such as pairs.jsonl; pairs.answers.jsonl beside it gets all answers with their scores.

    Examples:
        tsugiki pairs --model embedded --data prompts.jsonl --reward 'regex:ました。$' --out pairs.jsonl
        tsugiki pairs --model USER/NAME --from runs/chat --data prompts.jsonl --reward rule.py --out pairs.jsonl
    """
    import_libraries("tsugiki.training.run.stages")
    from tsugiki.functions import pairs

    found = pairs(out=str(out), **settings)
    message = _(
        "{out}: {pairs} of {drawn:,} prompts; mean reward {reward:.3f}; cut off: {cut:,} of {answers:,} answers",
        out=out,
        pairs=counts.pairs(found.pairs),
        drawn=found.drawn,
        reward=found.reward,
        cut=found.cut,
        answers=found.answers,
    )
    print_line(message)
    words = ["--model", settings["model"], "--data", str(out), "--out", "runs/pairs"]
    print_next_command("train", "--preference", "simpo", *words)
