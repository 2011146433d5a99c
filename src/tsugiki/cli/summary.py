"""Print the results of a run, of evaluations and of a merge."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tsugiki.cli.flags import words_of
from tsugiki.cli.terminal import print_line, print_lines, print_next_command, print_sections, print_table
from tsugiki.io.file_names import ADAPTER_FILE
from tsugiki.io.formatting import format_size
from tsugiki.language import _
from tsugiki.report.evaluations import evaluation_table
from tsugiki.report.pairs import scores_table
from tsugiki.report.run import run_sections
from tsugiki.report.sections import selected
from tsugiki.report.table import Table
from tsugiki.training.record.pairs import TwoScores
from tsugiki.training.record.result import Answers, Evaluation, change_of_share
from tsugiki.training.record.run_record import RunRecord
from tsugiki.training.settings.config import RunConfig

if TYPE_CHECKING:
    from tsugiki.training.run.merge import MergeReport


def print_summary(record: RunRecord, page: Path) -> None:
    """Print the results of a finished run, and its files."""
    out = record.folder()
    print_sections(selected(run_sections(record), "result", "notes", "pairs", "held_out"))
    kind = _("adapter") if (out / ADAPTER_FILE).exists() else _("model")
    size = sum(path.stat().st_size for path in out.glob("*model*.safetensors"))
    message = _("{kind}: {out} ({size}); page: {page}")
    print_lines(message.format(kind=kind, out=out, size=format_size(size), page=page))


def print_command_after_run(record: RunRecord, out: Path) -> None:
    """Print the next command with what is in the folder of a run: `generate` if the run has prompts, else `chat`."""
    named = ["--adapter", str(out)] if (out / ADAPTER_FILE).exists() else ["--model", str(out)]
    if record.config.prompts:
        compared = ["--compare"] if named[0] == "--adapter" else []
        print_next_command("generate", *named, "--prompt", record.config.prompts[0], *compared)
    else:
        print_next_command("chat", *(named[1:] if named[0] == "--adapter" else named))


def print_evaluations(names: Sequence[str], results: Sequence[Evaluation], more: Sequence[str] = ()) -> None:
    """Print a table with a row for each model, and more notes; changes are relative to the first model."""
    table, notes = evaluation_table(names, results)
    print_table(table, *notes, *more)


def print_scores(names: Sequence[str], results: Sequence[TwoScores], more: Sequence[str]) -> None:
    """Print a table of how often each model is right about pairs, and notes."""
    table, notes = scores_table(names, results)
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
                _("{done:,} of {planned:,}").format(done=result.correct, planned=result.questions),
                f"{result.share:.1%} [{low:.1%}, {high:.1%}]",
                "–" if result is first else f"{100 * change:+.1f} [{100 * least:+.1f}, {100 * most:+.1f}]",
            ]
        )
    print_table(
        Table([_("model"), _("correct"), _("share"), _("change, percentage points")], rows),
        _("95 % intervals in brackets; that of the change is for the same questions. --json prints every answer"),
    )


def print_merge(out: Path, report: "MergeReport") -> None:
    """Print how many tensors changed, the rounding error, and the differences that were verified."""
    message = _(
        "{out}: {changed:,} of {tensors:,} tensors changed; rounding to their dtypes loses {rounding:.2%} of the change"
    )
    print_line(message.format(out=out, changed=report.changed, tensors=report.tensors, rounding=report.rounding))
    if report.probe is not None:
        message = _(
            "probe: the adapter changes the logits by up to {shift:.3g}; the merged model's logits differ from the "
            "adapted model's by up to {error:.1e}"
        )
        print_line(message.format(shift=report.probe.shift, error=report.probe.error))
    if report.evaluations is not None:
        print_evaluations([_("base"), _("with the adapter"), _("merged")], report.evaluations)


def print_runs(table: Table, sentence: str, page: Path, best: RunConfig, out: Path) -> None:
    """Print the table of a comparison or a sweep, its result, its page, and the command with the best settings."""
    print_table(
        table,
        sentence,
        _("best run: {folder}; page: {page}").format(folder=best.out, page=page),
    )
    again = best.model_dump(mode="json", exclude_unset=True) | {"out": f"{out}-best"}
    print_next_command("train", *words_of(RunConfig, again))
