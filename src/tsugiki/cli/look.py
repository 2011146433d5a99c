"""Commands that measure and show: `tsugiki eval`, `methods`, `report` and `bench`."""

import shlex
import sys
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from tsugiki.cli.fast_start import import_libraries
from tsugiki.cli.flags import FlagsOf, Given
from tsugiki.cli.terminal import print_table
from tsugiki.errors import TsugikiError
from tsugiki.language import _, counts, ngettext
from tsugiki.report.table import Table

_LEAST_ANSWER = 2  # tokens
_HELD_OUT = 4  # texts of the quickstart


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
            _("trainable parameters: of {model}, with default settings").format(model=model),
            _("tsugiki methods NAME describes one method"),
            _("tsugiki methods targets lists the layers that LoRA grafts"),
        )
        return
    if name == "targets":
        from tsugiki.report.methods import targets_table

        table, lines = targets_table(model)
        print_table(table, *lines)
        return
    text, settings, notes = describe_method(name, model)
    typer.echo(text)
    if settings.rows:
        print_table(settings)
    for note in notes:
        typer.echo(note)


def report_command(
    folder: Path,
) -> None:
    """Regenerate the page of a run, report.html, from its record.

    Args:
        folder: Folder of a run, which may still be running.

    Examples:
        tsugiki report runs/ichiyo
    """
    from tsugiki.report.run import write_report

    typer.echo(str(write_report(folder)))


def bench_command(
    *,
    model: str = "gpt2-small",
    entries: str | None = None,
    batch: Annotated[int, typer.Option(min=1)] = 4,
    length: Annotated[int, typer.Option(min=2)] = 512,
    preference: bool = False,
    prompt: Annotated[int | None, typer.Option(min=1)] = None,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    steps: Annotated[int, typer.Option(min=1)] = 6,
    race: bool = False,
    data: list[str] | None = None,
    held_out: list[str] | None = None,
    seeds: Annotated[int, typer.Option(min=1)] = 3,
    out: Path | None = None,
    list_: bool = False,
) -> None:
    """Compare speed and memory with PEFT, TRL and others, and with the limit of this machine.

    Every entry trains on the same tokens in its own process, and only one process takes steps at a time.

    Args:
        model: A known shape (--list), 'embedded', a model folder, a GGUF file, or a hub id.
        entries: Names such as 'a,b' (--list), or 'all'. Default: the chapter, PEFT, TRL and Tsugiki. With --race: of
            'peft-documented,trl,tsugiki' those that run beside PEFT at its best. Default: all.
        batch: Rows per step, or pairs.
        length: Tokens per row, or of each answer of a pair with its prompt.
        preference: Learn from pairs of answers, with DPO, beside TRL.
        prompt: Tokens of the prompt of a pair. Default: half of --length.
        rounds: Blocks of consecutive steps of each entry, in turns.
        steps: Counted steps in a block; two more come first.
        race: Measure the time from the start of a process until the adapter reaches a held-out loss instead: that of
            PEFT at its best after one pass over --data.
        data: Training data of the race. Default: texts of the quickstart.
        held_out: Data for the held-out loss of the race.
        seeds: Runs of each tool in the race.
        out: Folder for results.json, table.md and plot.svg, or race.json.
        list_: List models and entries without measuring.

    Examples:
        tsugiki bench
        tsugiki bench --model embedded --entries all --out bench
        tsugiki bench --list
    """

    if list_:
        _list()
        return
    if race:
        _race(model, data or [], held_out or [], seeds, entries, out)
        return
    if data or held_out:
        raise TsugikiError(_("--data and --held-out are the texts of --race; give it too"))
    from tsugiki.bench.bench import choose_entries, run_benchmark
    from tsugiki.bench.results import results_lines, results_table, write_results
    from tsugiki.bench.workload import Workload
    from tsugiki.io.atomic import check_writable

    if out is not None:
        check_writable(out)
    if prompt and not preference:
        raise TsugikiError(_("--prompt is the length of the prompts of --preference; give both"))
    prompt = (prompt or length // 2) if preference else 0
    if preference and length - prompt < _LEAST_ANSWER:
        message = _("--length {length} leaves fewer than {tokens} to the answers after --prompt {prompt}")
        raise TsugikiError(message.format(length=length, tokens=counts.tokens(_LEAST_ANSWER), prompt=prompt))
    results = run_benchmark(
        choose_entries(entries, preference),
        Workload(model, batch, length, prompt=prompt),
        rounds,
        shlex.join(["tsugiki", *sys.argv[1:]]),
        lambda line: print(line, file=sys.stderr),
        steps,
    )
    if out is not None:
        write_results(results, out)
    titles, rows = results_table(results)
    print_table(
        Table([title and _(title) for title in titles], rows),
        *results_lines(results),
        *([_("written to {out}").format(out=out)] if out else []),
    )


def _race(model: str, data: list[str], held_out: list[str], seeds: int, entries: str | None, out: Path | None) -> None:
    from tsugiki.bench.models import SHAPES
    from tsugiki.bench.race import COLUMNS, OTHERS, run_race
    from tsugiki.io.atomic import check_writable

    if model in SHAPES:
        message = _(
            "{model} has random weights here; a race needs a base that was trained: --model embedded, or a folder"
        )
        raise TsugikiError(message.format(model=model))
    if bool(data) != bool(held_out):
        raise TsugikiError(_("a race needs both --data and --held-out, or neither for the texts of the quickstart"))
    if not data:
        texts = sorted(
            str(file) for file in (files("tsugiki") / "assets" / "quickstart").iterdir() if file.name.endswith(".txt")
        )
        data, held_out = texts[:-_HELD_OUT], texts[-_HELD_OUT:]
    if out is not None:
        check_writable(out)
    tools = entries.split(",") if entries else OTHERS
    result = run_race(model, data, held_out, seeds, lambda line: print(line, file=sys.stderr, flush=True), tools)
    if out is not None:
        result.write(out, shlex.join(["tsugiki", *sys.argv[1:]]))
    print_table(
        Table([title and _(title) for title in COLUMNS], result.rows()),
        ngettext(
            "peft-best: learning rate {rate:g}, {rows} row in a step, attention {attention}",
            "peft-best: learning rate {rate:g}, {rows} rows in a step, attention {attention}",
            result.best.batch_size,
        ).format(rate=result.best.learning_rate, rows=result.best.batch_size, attention=result.best.attention),
        *([_("written to {out}").format(out=out)] if out else []),
    )


def _list() -> None:
    from tsugiki.bench.entries import DEFAULT_ENTRIES, PREFERENCE_ENTRIES, TRAINING_ENTRIES
    from tsugiki.bench.models import known_models

    print_table(Table([_("model"), ""], [[name, _(summary)] for name, summary in known_models().items()]))
    rows = []
    for name, entry in {**TRAINING_ENTRIES, **PREFERENCE_ENTRIES}.items():
        default = _("default") if name in DEFAULT_ENTRIES else "--preference" if name in PREFERENCE_ENTRIES else ""
        missing = _("not installed ({install})").format(install=entry.install)
        rows.append([name, _(entry.summary), missing if entry.missing else default])
    print_table(Table([_("entry"), "", ""], rows))
