"""Print the results of a run and of a merge."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tsugiki.cli.flags import words_of
from tsugiki.cli.terminal import print_line, print_lines, print_next_command, print_sections, print_table
from tsugiki.io.file_names import ADAPTER_FILE
from tsugiki.io.formatting import format_duration, format_size
from tsugiki.io.system import is_verbose
from tsugiki.language import _
from tsugiki.report.run import RESULTS, run_sections
from tsugiki.report.sections import Samples, Sentence, answer_label, section, selected
from tsugiki.training.record.run_record import RunRecord
from tsugiki.training.settings.config import RunConfig

if TYPE_CHECKING:
    from tsugiki.training.run.merge import MergeReport
    from tsugiki.training.run.quickstart import Asked
    from tsugiki.training.run.sweep import Point
    from tsugiki.training.settings.sweep import SweepConfig

_SHOWN = 3
"""Questions that are printed with their answers."""


def print_summary(record: RunRecord, page: Path) -> None:
    """Print the results of a finished run, and its files; the figures of its loss are a detail, and on the page."""
    shown = [name for name in RESULTS if name != "held_out" or is_verbose()]
    print_sections(selected(run_sections(record), *shown))
    print_adapter(record, page)


def print_adapter(record: RunRecord, page: Path) -> None:
    """Print the files of a finished run, and how long it trained; a record of rounds has the time of one of them."""
    out = record.folder()
    kind = _("adapter") if (out / ADAPTER_FILE).exists() else _("model")
    facts = format_size(sum(path.stat().st_size for path in out.glob("*model*.safetensors")))
    if record.training and not record.rounds:
        facts = _("{size}, {time} of training", size=facts, time=format_duration(record.training.seconds))
    print_lines(_("{kind}: {out} ({facts}); all figures: {page}", kind=kind, out=out, facts=facts, page=page))


def print_asked(asked: "Sequence[Asked]") -> None:
    """Print the first questions of a list with their answers before and after, and how many of all are right."""
    texts = []
    for one in asked[:_SHOWN]:
        labels = (_("before"), one.right[0]), (_("after"), one.right[1])
        answers = [" ".join(answer.split()) for answer in one.answers]
        rows = [(answer_label(*label), answer) for label, answer in zip(labels, answers, strict=True)]
        texts.append(Samples(one.question, rows, one.expected))
    right = [sum(marks) for marks in zip(*(one.right for one in asked), strict=True)]
    message = _(
        "{count} questions in phrasings that were not learned: {after} answered right, {before} before. Right is an "
        "answer with all key words of its fact and none of another's.",
        count=len(asked),
        after=right[1],
        before=right[0],
    )
    result = Sentence(message)
    print_sections([section("answers", "", *texts, result)])


def print_command_after_run(record: RunRecord, out: Path) -> None:
    """Print the next command with what is in the folder of a run: `generate` if the run has prompts, else `chat`."""
    named = ["--adapter", str(out)] if (out / ADAPTER_FILE).exists() else ["--model", str(out)]
    if record.config.prompts:
        compared = ["--compare"] if named[0] == "--adapter" else []
        print_next_command("generate", *named, "--prompt", record.config.prompts[0], *compared)
    else:
        print_next_command("chat", *(named[1:] if named[0] == "--adapter" else named))


def print_merge(out: Path, report: "MergeReport") -> None:
    """Print how many tensors changed, the rounding error, and the differences that were verified."""
    message = _(
        "{out}: {changed:,} of {tensors:,} tensors changed; rounding to their dtypes loses {rounding:.2%} of the "
        "change",
        out=out,
        changed=report.changed,
        tensors=report.tensors,
        rounding=report.rounding,
    )
    print_line(message)
    if report.probe is not None:
        message = _(
            "probe: the adapter changes the logits by up to {shift:.3g}; the merged model's logits differ from the "
            "adapted model's by up to {error:.1e}",
            shift=report.probe.shift,
            error=report.probe.error,
        )
        print_line(message)


def print_sweep(config: "SweepConfig", points: "Sequence[Point]", page: Path) -> None:
    """Print the table of a sweep, its result, its page, and the command with the settings of the best run."""
    from tsugiki.report.sweep import sweep_sentence, sweep_table

    best = config.runs()[min(points, key=lambda point: point.loss).name][1]
    print_table(
        sweep_table(points),
        sweep_sentence(points),
        _("best run: {folder}; page: {page}", folder=best.out, page=page),
    )
    again = best.model_dump(mode="json", exclude_unset=True) | {"out": f"{config.out}-best"}
    print_next_command("train", *words_of(RunConfig, again))
