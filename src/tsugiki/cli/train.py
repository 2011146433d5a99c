"""`tsugiki train`."""

from pathlib import Path
from typing import Annotated, Any

import typer


def train_command(
    config: Annotated[Path | None, typer.Argument(help="A YAML file of settings; flags win over it.")] = None,
    model: Annotated[str | None, typer.Option(help="'embedded', a model folder, a GGUF file, or a hub id.")] = None,
    data: Annotated[
        str | None, typer.Option(help="A .txt, .jsonl, .csv or .parquet file, a folder, or a dataset's id.")
    ] = None,
    out: Annotated[str | None, typer.Option(help="The run's folder, loadable as an adapter (or a model) then.")] = None,
    method: Annotated[str | None, typer.Option(help="lora, another of `tsugiki methods`, or full.")] = None,
    rank: Annotated[int | None, typer.Option(help="r of the adapter (8).")] = None,
    alpha: Annotated[float | None, typer.Option(help="lora_alpha (32); the update is scaled by alpha / r.")] = None,
    dropout: Annotated[float | None, typer.Option(help="lora_dropout (0.1).")] = None,
    target_modules: Annotated[
        str | None, typer.Option(help="Layers to graft: name endings 'a,b', or 'all-linear'; by architecture if unset.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="A setting of the method, NAME=VALUE; repeatable (`tsugiki methods NAME`)."),
    ] = None,
    base_dtype: Annotated[
        str | None, typer.Option(help="Of an adapter: the frozen base in bf16, fp32 or int8; the fastest if unset.")
    ] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the data (3).")] = None,
    max_steps: Annotated[int | None, typer.Option(help="Optimiser steps; wins over --epochs.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows at once (4).")] = None,
    grad_accum: Annotated[int | None, typer.Option(help="Batches an optimiser step (4).")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Peak learning rate (1e-4; of some methods more).")
    ] = None,
    block_size: Annotated[int | None, typer.Option(help="Tokens a row (512, or the model's context).")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the split, the start and the order (42).")] = None,
    held_out: Annotated[
        str | None,
        typer.Option(help="What is measured, never learned: a share (0.1), a file, or a condition such as author=…."),
    ] = None,
    assistant_turns: Annotated[
        str | None, typer.Option(help="Answers of a conversation that are learned: all, or last.")
    ] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="Continued at start, middle and end; repeatable.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint in --out.")] = False,
) -> None:
    """Train an adapter, or a whole model, on texts: one command, one folder."""
    from tsugiki.train.config import load_config

    given: dict[str, Any] = {
        "model": model,
        "data": data,
        "out": out,
        "method": method,
        "base_dtype": base_dtype,
        "epochs": epochs,
        "max_steps": max_steps,
        "batch_size": batch_size,
        "grad_accum": grad_accum,
        "learning_rate": learning_rate,
        "block_size": block_size,
        "seed": seed,
        "held_out": number_or_text(held_out),
        "assistant_turns": assistant_turns,
        "prompts": prompt or None,
    }
    lora = {"r": rank, "lora_alpha": alpha, "lora_dropout": dropout, "target_modules": layer_names(target_modules)}
    given["lora"] = {name: value for name, value in lora.items() if value is not None}
    settings = load_config(
        config, {name: value for name, value in given.items() if value is not None}, dict(map(_setting, set_ or []))
    )

    from tsugiki.cli.summary import print_summary
    from tsugiki.report.run import write_report
    from tsugiki.train.run import train

    record = train(settings, resume=resume)
    print_summary(record, write_report(Path(settings.out)))


def number_or_text(text: str | None) -> float | str | None:
    """A flag that may be a number."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return text


def _setting(text: str) -> tuple[str, Any]:
    """NAME=VALUE, the value as YAML has it."""
    import yaml

    from tsugiki.errors import TsugikiError

    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise TsugikiError(f"--set {text}: write NAME=VALUE, such as num_virtual_tokens=16")
    try:
        return name.strip(), yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise TsugikiError(f"--set {text}: {value!r} is no value") from error


def layer_names(text: str | None) -> list[str] | str | None:
    """A flag that names layers."""
    return text if text is None or text == "all-linear" else [name.strip() for name in text.split(",")]
