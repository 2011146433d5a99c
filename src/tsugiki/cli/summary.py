"""Print the results of a run, of evaluations and of a merge."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tsugiki.cli.tables import print_table
from tsugiki.io.file_names import ADAPTER_FILE
from tsugiki.io.formatting import format_gigabytes, format_size
from tsugiki.report.formatting import describe_change, format_change, format_with_interval
from tsugiki.report.run import change_of_run, held_out_table
from tsugiki.train.evaluation.result import Evaluation, change_of_bits
from tsugiki.train.record import RunRecord, finished
from tsugiki.train.workflows.merge import MergeReport

_WIDTH = 120  # if the output is not a terminal


def print_summary(record: RunRecord, page: Path) -> None:
    """Print the held-out figures of a run before and after training, its time and memory, and its files."""
    out, warning = record.folder(), record.evaluations[-1].warning
    training, _ = finished(record)
    kind = "adapter" if (out / ADAPTER_FILE).exists() else "model"
    size = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    print_table(
        held_out_table(record),
        f"change: {describe_change(change_of_run(record))}",
        f"{training.steps:,} steps, {training.tokens:,} tokens in {training.seconds:,.0f} s "
        f"({training.tokens_per_second:,.0f} tokens/s), peak memory {format_gigabytes(training.peak_memory)}",
        f"{kind}: {out} ({format_size(size)}); page: {page}",
        *([warning] if warning else []),
    )


def print_evaluations(names: Sequence[str], results: Sequence[Evaluation]) -> None:
    """Print a table with a row for each model; changes are relative to the first one."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _WIDTH
    table = Table("model", "loss", "perplexity", "bits/char", "change of bits", "tokens")
    for name, result in zip(names, results, strict=True):
        table.add_row(
            name,
            format_with_interval(result.loss, result.loss_interval),
            f"{result.perplexity:,.4g}",
            format_with_interval(result.bits_per_char, result.bits_per_char_interval),
            "–" if result is results[0] else format_change(change_of_bits(results[0], result)),
            f"{result.tokens:,}",
        )
    console.print(table)
    first = results[0]
    console.print(
        f"{first.characters:,} characters of {len(first.documents):,} documents in {first.windows:,} windows; "
        "95 % intervals over documents in brackets",
        soft_wrap=True,
    )
    console.print("between models with different tokenizers, compare only bits per character", soft_wrap=True)
    for name, result in zip(names, results, strict=True):
        if result.warning:
            console.print(f"{name}: {result.warning}")
        if result.skipped_records:
            console.print(f"{name}: {result.skipped_records:,} examples are longer than the context and are not scored")
        if result.split_windows:
            console.print(
                f"{name}: {result.split_windows:,} windows are longer than the context and are scored in pieces"
            )


def print_merge(out: Path, report: MergeReport) -> None:
    """Print how many tensors changed, the rounding error, and the differences that were verified."""
    console = Console(highlight=False)
    console.print(
        f"{out}: {report.changed:,} of {report.tensors:,} tensors changed; "
        f"rounding to their dtypes loses {report.rounding:.2%} of the change",
        soft_wrap=True,
    )
    if report.probe is not None:
        console.print(
            f"probe: the adapter changes the logits by up to {report.probe.shift:.3g}; the merged model's logits "
            f"differ from the adapted model's by up to {report.probe.error:.1e}",
            soft_wrap=True,
        )
    if report.evaluations is not None:
        print_evaluations(["base", "with the adapter", "merged"], report.evaluations)
