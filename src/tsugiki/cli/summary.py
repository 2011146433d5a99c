"""What a finished run, or an evaluation, shows on standard output."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tsugiki.adapters.files import WEIGHTS_FILE
from tsugiki.train.bootstrap import Interval, change_interval
from tsugiki.train.evaluate import Evaluation
from tsugiki.train.record import RunRecord
from tsugiki.train.subjects import change_against

_PLAIN_WIDTH = 120  # of a table that no terminal bounds
_FEW = 10  # documents, below which an interval says too little


def print_summary(record: RunRecord) -> None:
    """Held-out figures before and after, what it cost, and where the adapter is."""
    console = Console(highlight=False)
    before, after = record.evaluations[0], record.evaluations[-1]
    table = Table("held-out text", "before", "after", "change")
    for name, label in (("loss", "loss"), ("perplexity", "perplexity"), ("bits_per_char", "bits per character")):
        change = after[name] / before[name] - 1
        table.add_row(label, _with_interval(before, name), _with_interval(after, name), f"{change:+.1%}")
    console.print(table)
    console.print(_luck(before, after))
    training, out = record.training, Path(record.config["out"])
    console.print(
        f"{training['steps']:,} steps, {training['tokens']:,} tokens in {training['seconds']:,.0f} s "
        f"({training['tokens_per_second']:,.0f} tokens/s), peak memory {training['peak_memory'] / 1e9:.2f} GB"
    )
    kind = "adapter" if (out / WEIGHTS_FILE).exists() else "model"
    size = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    console.print(f"{kind}: {out} ({size / 1e6:.2f} MB); record: {out / 'run.json'}", soft_wrap=True)
    if after["caveat"]:
        console.print(after["caveat"])


def print_evaluations(names: Sequence[str], results: Sequence[Evaluation]) -> None:
    """A table with a line for each model, the first one being what the others are compared with."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _PLAIN_WIDTH
    table = Table("model", "loss", "perplexity", "bits/char", "change of bits", "tokens")
    for name, result in zip(names, results, strict=True):
        figures = result.to_json()
        change, interval = change_against(results[0], result)
        table.add_row(
            name,
            _with_interval(figures, "loss"),
            f"{result.perplexity:,.4g}",
            _with_interval(figures, "bits_per_char"),
            "–" if result is results[0] else f"{change:+.1%}" + _percent(interval),
            f"{result.tokens:,}",
        )
    console.print(table)
    first = results[0]
    console.print(
        f"{first.characters:,} characters of {len(first.documents):,} documents in {first.windows:,} windows; "
        "in brackets 95 % intervals over documents",
        soft_wrap=True,
    )
    console.print(
        "compare bits per character between models: loss and perplexity are each tokenizer's own", soft_wrap=True
    )
    for name, result in zip(names, results, strict=True):
        if result.caveat:
            console.print(f"{name}: {result.caveat}")
        if result.left_out:
            console.print(f"{name}: {result.left_out:,} examples are longer than its context and are not scored")
        if result.cut_windows:
            console.print(f"{name}: {result.cut_windows:,} windows are longer than its context and scored in pieces")


def _with_interval(figures: dict[str, Any], name: str) -> str:
    interval = figures[f"{name}_interval"]
    return f"{figures[name]:,.4g}" + (f"\n[{interval[0]:,.4g}, {interval[1]:,.4g}]" if interval else "")


def _percent(interval: Interval | None) -> str:
    return f"\n[{interval[0]:+.1%}, {interval[1]:+.1%}]" if interval else ""


def _luck(before: dict[str, Any], after: dict[str, Any]) -> str:
    """How sure the change of the loss is."""
    interval = change_interval(before["documents"], after["documents"])
    documents = len(after["documents"])
    if interval is None:
        return "one held-out document: how far its figures hold for others cannot be told"
    return (
        f"change of the loss over {documents:,} documents, 95 % interval: {interval[0]:+.1%} to {interval[1]:+.1%}"
        + ("; it may be luck" if interval[0] < 0 < interval[1] else "")
        + ("; so few make it too narrow" if documents < _FEW else "")
    )
