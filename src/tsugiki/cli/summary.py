"""What a finished run, or an evaluation, shows on standard output."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tsugiki.cli.tables import print_table
from tsugiki.io.file_names import ADAPTER_FILE
from tsugiki.io.formatting import format_gigabytes, format_size
from tsugiki.report.formatting import with_interval
from tsugiki.report.run import describe_change, held_out_table
from tsugiki.train.evaluation.evaluate import Evaluation
from tsugiki.train.evaluation.interval import Interval
from tsugiki.train.evaluation.targets import change_against
from tsugiki.train.record import RunRecord
from tsugiki.train.workflows.merge import MergeReport

_PLAIN_WIDTH = 120  # of a table that no terminal bounds


def print_summary(record: RunRecord, page: Path) -> None:
    """Held-out figures before and after, what it cost, and where the adapter and the run's page are."""
    training, out, caveat = record.training, Path(record.config["out"]), record.evaluations[-1]["caveat"]
    kind = "adapter" if (out / ADAPTER_FILE).exists() else "model"
    size = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    print_table(
        held_out_table(record),
        f"change: {describe_change(record)}",
        f"{training['steps']:,} steps, {training['tokens']:,} tokens in {training['seconds']:,.0f} s "
        f"({training['tokens_per_second']:,.0f} tokens/s), peak memory {format_gigabytes(training['peak_memory'])}",
        f"{kind}: {out} ({format_size(size)}); page: {page}",
        *([caveat] if caveat else []),
    )


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
            with_interval(figures, "loss"),
            f"{result.perplexity:,.4g}",
            with_interval(figures, "bits_per_char"),
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


def print_merge(out: Path, report: MergeReport) -> None:
    """How much of the base changed, and how near the merged model is to base and adapters."""
    console = Console(highlight=False)
    console.print(
        f"{out}: {report.changed:,} of {report.tensors:,} tensors changed; "
        f"rounded to their types, they lose {report.rounding:.2%} of the change",
        soft_wrap=True,
    )
    if report.probe is not None:
        console.print(
            f"the adapter moves the probe's logits by up to {report.probe.shift:.3g}; "
            f"merged, they are the adapted model's to {report.probe.error:.1e}",
            soft_wrap=True,
        )
    if report.evaluations is not None:
        print_evaluations(["base", "with the adapter", "merged"], report.evaluations)


def _percent(interval: Interval | None) -> str:
    return f"\n[{interval[0]:+.1%}, {interval[1]:+.1%}]" if interval else ""
