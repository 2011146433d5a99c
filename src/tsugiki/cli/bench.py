"""`tsugiki bench`."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer


def bench_command(
    model: Annotated[
        str, typer.Option(help="A shape by name (--list), 'embedded', a model folder, a GGUF file, or a hub id.")
    ] = ("gpt2-small"),
    contenders: Annotated[
        str | None, typer.Option(help="Names 'a,b' (--list), or 'all'; the chapter, PEFT, TRL and Tsugiki if unset.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Rows a step.")] = 4,
    length: Annotated[int, typer.Option(min=2, help="Tokens a row.")] = 512,
    rounds: Annotated[int, typer.Option(min=1, help="Steps of each that are counted.")] = 5,
    generate: Annotated[bool, typer.Option("--generate", help="Measure generation instead of training.")] = False,
    out: Annotated[Path | None, typer.Option(help="A folder for results.json, table.md and plot.svg.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="List models and contenders, and measure nothing.")] = False,
) -> None:
    """Measure speed and memory beside PEFT, TRL and others, and how near each comes to this machine's limit.

    Every contender does the same work in a process of its own; one at a time takes a step, round after round.
    """
    from tsugiki.cli.tables import print_table

    if list_:
        _list()
        return
    from tsugiki.bench.bench import bench, check_folder, write
    from tsugiki.bench.contenders import CONTENDERS, GENERATORS
    from tsugiki.bench.table import results_lines, results_table
    from tsugiki.bench.work import PROMPT, Work

    if out is not None:
        check_folder(out)
    table = GENERATORS if generate else CONTENDERS
    names = list(table) if contenders == "all" else [name.strip() for name in (contenders or "").split(",") if name]
    results = bench(
        "generate" if generate else "train",
        names,
        Work(model, 1, PROMPT) if generate else Work(model, batch, length),
        rounds,
        shlex.join(["tsugiki", *sys.argv[1:]]),
        lambda line: print(line, file=sys.stderr),
    )
    if out is not None:
        write(results, out)
    headers, rows = results_table(results)
    print_table((headers, rows), *results_lines(results), *([f"written to {out}"] if out else []))


def _list() -> None:
    from tsugiki.bench.contenders import CONTENDERS, DEFAULT, GENERATORS
    from tsugiki.bench.models import known_models
    from tsugiki.cli.tables import print_table

    print_table((["model", ""], [[name, about] for name, about in known_models().items()]))
    for title, table in (("contender", CONTENDERS), ("contender, --generate", GENERATORS)):
        rows = [
            [name, one.about, f"not installed ({one.install})" if one.missing else "usual" if name in DEFAULT else ""]
            for name, one in table.items()
        ]
        print_table(([title, "", ""], rows))
