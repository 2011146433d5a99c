"""Print the results of a run, of evaluations and of a merge."""

from collections.abc import Sequence
from pathlib import Path

from tsugiki.cli.tables import print_table, say
from tsugiki.io.file_names import ADAPTER_FILE
from tsugiki.io.formatting import format_gigabytes, format_size
from tsugiki.report.evaluations import evaluation_table
from tsugiki.report.formatting import describe_change
from tsugiki.report.run import change_of_run, choice_notes, held_out_table
from tsugiki.train.evaluation.result import Answers, Evaluation, change_of_share
from tsugiki.train.record import RunRecord, finished
from tsugiki.train.workflows.merge import MergeReport


def print_summary(record: RunRecord, page: Path) -> None:
    """Print the held-out figures of a run before and after training, its time and memory, and its files."""
    out, warning = record.folder(), record.evaluations[-1].warning
    training, _ = finished(record)
    kind = "adapter" if (out / ADAPTER_FILE).exists() else "model"
    size = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    print_table(
        held_out_table(record),
        f"change: {describe_change(change_of_run(record))}",
        *choice_notes(record),
        f"{training.steps:,} steps, {training.tokens:,} tokens in {training.seconds:,.0f} s "
        f"({training.tokens_per_second:,.0f} tokens/s), peak memory {format_gigabytes(training.peak_memory)}",
        f"{kind}: {out} ({format_size(size)}); page: {page}",
        *([warning] if warning else []),
    )


def print_evaluations(names: Sequence[str], results: Sequence[Evaluation], more: Sequence[str] = ()) -> None:
    """Print a table with a row for each model, and more notes; changes are relative to the first model."""
    table, notes = evaluation_table(names, results)
    print_table(table, *notes, *more)


def print_answers(names: Sequence[str], results: Sequence[Answers]) -> None:
    """Print a table of the shares of correct answers; changes are relative to the first model."""
    first, rows = results[0], []
    for name, result in zip(names, results, strict=True):
        low, high = result.share_interval
        change, (least, most) = change_of_share(first, result)
        rows.append(
            [
                name,
                f"{result.correct:,} of {result.questions:,}",
                f"{result.share:.1%} [{low:.1%}, {high:.1%}]",
                "–" if result is first else f"{100 * change:+.1f} [{100 * least:+.1f}, {100 * most:+.1f}]",
            ]
        )
    print_table(
        (["model", "correct", "share", "change, percentage points"], rows),
        "95 % intervals in brackets; that of the change is for the same questions. --json prints every answer",
    )


def print_merge(out: Path, report: MergeReport) -> None:
    """Print how many tensors changed, the rounding error, and the differences that were verified."""
    say(
        f"{out}: {report.changed:,} of {report.tensors:,} tensors changed; "
        f"rounding to their dtypes loses {report.rounding:.2%} of the change"
    )
    if report.probe is not None:
        say(
            f"probe: the adapter changes the logits by up to {report.probe.shift:.3g}; the merged model's logits "
            f"differ from the adapted model's by up to {report.probe.error:.1e}"
        )
    if report.evaluations is not None:
        print_evaluations(["base", "with the adapter", "merged"], report.evaluations)
