"""`tsugiki bench`."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from tsugiki.language import _


def bench_command(
    model: Annotated[
        str, typer.Option(help="A known shape (--list), 'embedded', a model folder, a GGUF file, or a hub id.")
    ] = "gpt2-small",
    entries: Annotated[
        str | None,
        typer.Option(help="Names such as 'a,b' (--list), or 'all'. Default: the chapter, PEFT, TRL and Tsugiki."),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Rows per step.")] = 4,
    length: Annotated[int, typer.Option(min=2, help="Tokens per row.")] = 512,
    rounds: Annotated[int, typer.Option(min=1, help="Blocks of consecutive steps of each entry, in turns.")] = 3,
    steps: Annotated[int, typer.Option(min=1, help="Counted steps in a block; two more come first.")] = 6,
    out: Annotated[Path | None, typer.Option(help="Folder for results.json, table.md and plot.svg.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="List models and entries without measuring.")] = False,
) -> None:
    """Compare speed and memory with PEFT, TRL and others, and with the limit of this machine.

    Every entry trains on the same tokens in its own process, and only one process takes steps at a time.
    """
    from tsugiki.cli.tables import print_table

    if list_:
        _list()
        return
    from tsugiki.bench.bench import choose_entries, run_benchmark, write_results
    from tsugiki.bench.entries import TRAINING_ENTRIES
    from tsugiki.bench.table import results_lines, results_table
    from tsugiki.bench.workload import Workload
    from tsugiki.io.atomic import check_writable

    if out is not None:
        check_writable(out)
    names = (
        list(TRAINING_ENTRIES) if entries == "all" else [name.strip() for name in (entries or "").split(",") if name]
    )
    results = run_benchmark(
        choose_entries(names),
        Workload(model, batch, length),
        rounds,
        shlex.join(["tsugiki", *sys.argv[1:]]),
        lambda line: print(line, file=sys.stderr),
        steps,
    )
    if out is not None:
        write_results(results, out)
    headers, rows = results_table(results)
    print_table(
        ([header and _(header) for header in headers], rows),
        *results_lines(results),
        *([_("written to {out}").format(out=out)] if out else []),
    )


def _list() -> None:
    from tsugiki.bench.entries import DEFAULT_ENTRIES, TRAINING_ENTRIES
    from tsugiki.bench.models import known_models
    from tsugiki.cli.tables import print_table

    print_table(([_("model"), ""], [[name, _(summary)] for name, summary in known_models().items()]))
    rows = []
    for name, entry in TRAINING_ENTRIES.items():
        default = _("default") if name in DEFAULT_ENTRIES else ""
        missing = _("not installed ({install})").format(install=entry.install)
        rows.append([name, _(entry.summary), missing if entry.missing else default])
    print_table(([_("entry"), "", ""], rows))
