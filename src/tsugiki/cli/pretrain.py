"""`tsugiki pretrain`."""

from pathlib import Path
from typing import Annotated, Any

import typer


def pretrain_command(
    config: Annotated[Path, typer.Argument(help="A YAML file of settings; flags win over it.")],
    data: Annotated[
        str | None, typer.Option(help="A .txt, .jsonl, .csv or .parquet file, a folder, or a dataset's id.")
    ] = None,
    out: Annotated[str | None, typer.Option(help="The run's folder, a model folder afterwards.")] = None,
    held_out: Annotated[
        str | None,
        typer.Option(help="What is measured, never learned: a share (0.1), a file, or a condition such as author=…."),
    ] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the data (1).")] = None,
    max_steps: Annotated[int | None, typer.Option(help="Optimiser steps; wins over --epochs.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate (3e-3).")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the split, the weights and the order (42).")] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="Continued at start, middle and end; repeatable.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint in --out.")] = False,
) -> None:
    """Train a model from nothing: its tokenizer, then its weights."""
    from tsugiki.cli.train import number_or_text
    from tsugiki.train.workflows.pretrain_config import load_pretrain_config

    given: dict[str, Any] = {
        "data": data,
        "out": out,
        "held_out": number_or_text(held_out),
        "epochs": epochs,
        "max_steps": max_steps,
        "learning_rate": learning_rate,
        "seed": seed,
        "prompts": prompt or None,
    }
    settings = load_pretrain_config(config, {name: value for name, value in given.items() if value is not None})

    from tsugiki.cli.summary import print_summary
    from tsugiki.report.run import write_report
    from tsugiki.train.workflows.pretrain import pretrain

    record = pretrain(settings, resume=resume)
    print_summary(record, write_report(Path(settings.out)))
