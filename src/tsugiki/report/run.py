"""`report.html` of a run: results, samples, data, settings and machine."""

import math
import shlex
from collections.abc import Sequence
from pathlib import Path

import yaml
from markupsafe import Markup

from tsugiki.io.atomic import write_text
from tsugiki.io.formatting import format_duration, format_gigabytes
from tsugiki.methods.table import family_of
from tsugiki.report.formatting import (
    Table,
    describe_change,
    format_change,
    format_number,
    format_value,
    format_with_interval,
)
from tsugiki.report.page import page, render_macro
from tsugiki.report.plots import Series, curves, smoothed
from tsugiki.report.samples import all_samples, sample_columns
from tsugiki.train.evaluation.interval import Change, Interval
from tsugiki.train.evaluation.result import Evaluation, StepEvaluation, change_of_bits
from tsugiki.train.record import NO_GAIN, DataSummary, RunRecord, TrainingFigures, read_record

REPORT_FILE = "report.html"
_SECTIONS = 12  # a loss curve is smoothed over 1 / _SECTIONS of its points
_TRAINING, _HELD_OUT, _VALIDATION = 0, 1, 2  # colours
_MUCH_FORGOTTEN = 0.03  # relative rise of the loss on the retention text
_DOCUMENT_MASKING = {
    "position_ids": "masked from each other by position ids",
    "attention_mask": "masked from each other by an attention mask",
    "separate_rows": "in separate rows",
}


def write_report(folder: Path) -> Path:
    """Write `report.html` from the `run.json` in the same folder. The run need not be finished.

    Raises:
        TsugikiError: there is no run, or the page cannot be written; an existing page is unchanged.
    """
    path = folder / REPORT_FILE
    write_text(path, report_page(read_record(folder), folder))
    return path


def report_page(record: RunRecord, folder: Path) -> str:
    """Render the page of a run with what its record contains so far; the title and the commands name the folder."""
    title = f"Run · {folder.resolve().name}"
    sections = [*record_sections(record), ("Usage", _usage(record, folder))]
    return page(title, summary_sentence(record), sections, _notes(record))


def record_sections(record: RunRecord) -> list[tuple[str, Markup]]:
    """Render the sections of a page for a record; those without content are empty."""
    return [
        ("Held-out text and loss", _figures(record)),
        ("Samples", sample_columns([("", record)]) + all_samples(record)),
        ("Evaluations", _evaluations(record)),
        ("Data", _data(record)),
        ("Model and method", _parameters(record)),
        ("Settings", _settings(record)),
        ("Machine", _machine(record)),
    ]


def held_out_table(record: RunRecord) -> Table:
    """Return the held-out figures before and after training, with 95 % intervals; no rows if one of them is missing."""
    rows = []
    if len(record.evaluations) > 1:
        figures = zip(_figures_of(record.evaluations[0]), _figures_of(record.evaluations[-1]), strict=True)
        for (label, before, before_interval), (_, after, after_interval) in figures:
            texts = format_with_interval(before, before_interval), format_with_interval(after, after_interval)
            rows.append([label, *texts, _relative(before, after)])
    return ["held-out text", "before", "after", "change"], rows


def change_of_run(record: RunRecord) -> Change:
    """Return the change of the held-out bits per character from the first to the last evaluation of a run."""
    return change_of_bits(record.evaluations[0], record.evaluations[-1])


def summary_sentence(record: RunRecord) -> str:
    """Return what the run has done to the held-out figures, in one sentence."""
    if not record.evaluations:
        return "There is no evaluation yet."
    before, after = record.evaluations[0], record.evaluations[-1]
    figures = f"{format_number(after.bits_per_char)} bits per character (loss {format_number(after.loss)})"
    if len(record.evaluations) == 1:
        return f"At step {after.step} the held-out text needs {figures}; there is no later evaluation yet."
    change = change_of_run(record)
    if math.isnan(change.relative):
        return f"At step {after.step} the held-out text needs {figures}; the change cannot be computed."
    return (
        f"After {after.step:,} steps the held-out text needs {figures} instead of "
        f"{format_number(before.bits_per_char)} (loss {format_number(before.loss)}): "
        f"{change.relative:+.1%} ({describe_change(change)})."
    )


def loss_series(record: RunRecord) -> list[Series]:
    """Return lines for training loss, smoothed training loss, validation and held-out loss, in nats per token."""
    points = [(float(point.step), point.loss) for point in record.loss_curve]
    window = max(1, len(points) // _SECTIONS) | 1
    if window == 1:
        training = [Series("training", points, colour=_TRAINING)] if points else []
    else:
        training = [
            Series("training", points, colour=_TRAINING, faint=True),
            Series(f"training, mean of {window}", smoothed(points, window), colour=_TRAINING),
        ]
    lines = [
        _by_step(entries, name, [(entry.loss, entry.loss_interval) for entry in entries], colour)
        for entries, name, colour in (
            (record.validations, "validation", _VALIDATION),
            (record.evaluations, "held-out", _HELD_OUT),
        )
        if entries
    ]
    return [*training, *lines]


def held_out_series(record: RunRecord, name: str, colour: int = _HELD_OUT) -> Series:
    """Return a line for the held-out bits per character by step, with intervals."""
    return _bits_by_step(record.evaluations, name, colour)


def data_lines(data: DataSummary) -> list[tuple[str, str]]:
    """Return labels and texts for the counts of a run's data."""
    size = data.blocks * data.block_size
    return [
        ("training data", f"{data.train.documents:,} records, {data.train.characters:,} characters"),
        *([("of these mixed in", f"{data.mixed.documents:,} records, {data.mixed.share:.1%}")] if data.mixed else []),
        ("held out", f"{data.held_out.documents:,} records, {data.held_out.characters:,} characters"),
        *_validation_line(data),
        ("tokens per epoch", f"{data.tokens_per_epoch:,}"),
        (
            "target tokens per epoch",
            f"{data.target_tokens_per_epoch:,}, {data.target_tokens_per_epoch / data.tokens_per_epoch:.1%}",
        ),
        ("rows", f"{data.blocks:,} of {data.block_size} tokens, {data.padding / size:.1%} padding"),
        ("documents in a row", _DOCUMENT_MASKING[data.document_masking]),
        ("continue in other rows", f"{data.split_records:,} documents"),
        ("cut off", f"{data.cut_records:,} examples, {data.cut_tokens:,} tokens"),
        ("near-duplicates", f"{data.near_duplicates.records:,} records in {data.near_duplicates.groups:,} groups"),
    ]


def _validation_line(data: DataSummary) -> list[tuple[str, str]]:
    validation = data.validation
    if validation is None:
        return []
    if validation.from_held_out:
        return [("validation", "every second window of the held-out records")]
    return [("validation", f"{validation.documents:,} records, {validation.characters:,} characters")]


def near_duplicate_lines(data: DataSummary) -> list[tuple[str, str]]:
    """Return labels and texts for the first groups of near-duplicates: the names of their records."""
    return [("  group", " · ".join(group)) for group in data.near_duplicates.first]


def adapter_commands(base: str | None, folder: Path, prompt: str) -> str:
    """Return commands that use an adapter, as lines for a shell."""
    model, adapter = shlex.quote(base or "BASE"), shlex.quote(str(folder))
    return (
        f"tsugiki generate --model {model} --adapter {adapter} --prompt {prompt}\n"
        f"tsugiki eval --adapter {adapter} --data other.txt\n"
        f"tsugiki merge --model {model} --adapter {adapter} --out merged"
    )


def choice_notes(record: RunRecord) -> list[str]:
    """Return what a run has decided by its losses, one sentence each."""
    notes = [
        f"The training loss rose until step {restart.step:,} at a learning rate of {restart.learning_rate:g}, so the "
        "run began again with a third of it."
        for restart in record.restarts
    ]
    if record.kept_step is not None and record.training and record.kept_step < record.training.steps:
        notes.append(
            f"Step {record.kept_step:,} had the lowest loss on the validation text and is kept; the run ended after "
            f"step {record.training.steps:,} of {record.resolved_settings.get('steps', '?')}."
        )
    if not record.any_step_is_better():
        notes.append(f"{NO_GAIN[0].upper()}{NO_GAIN[1:]}.")
    retention = [entry.loss for entry in record.retention_evaluations]
    rise = retention[-1] / retention[0] - 1 if retention else 0.0
    if rise > _MUCH_FORGOTTEN:
        notes.append(
            f"The loss on the retention text rose by {rise:.1%}: with --mix FILE:0.1, a run trains on such text as "
            "well and forgets less."
        )
    return notes


def _figures_of(result: Evaluation) -> list[tuple[str, float, Interval | None]]:
    return [
        ("loss", result.loss, result.loss_interval),
        ("perplexity", result.perplexity, result.perplexity_interval),
        ("bits per character", result.bits_per_char, result.bits_per_char_interval),
    ]


def _bits_by_step(entries: Sequence[StepEvaluation], name: str, colour: int) -> Series:
    return _by_step(entries, name, [(entry.bits_per_char, entry.bits_per_char_interval) for entry in entries], colour)


def _by_step(
    entries: Sequence[StepEvaluation], name: str, figures: list[tuple[float, Interval | None]], colour: int
) -> Series:
    """Return the line of a figure of each evaluation."""
    points = [(float(entry.step), figure) for entry, (figure, _) in zip(entries, figures, strict=True)]
    band = [interval for _, interval in figures if interval is not None]
    # A single held-out document has no interval.
    return Series(name, points, band if len(band) == len(points) else [], colour)


def _notes(record: RunRecord) -> list[str]:
    notes = []
    if record.status != "finished":
        steps = record.training.steps if record.training else 0
        planned = record.resolved_settings.get("steps")
        of = f" of {planned:,}" if isinstance(planned, int) else ""
        notes.append(
            f"Not finished: step {steps:,}{of}. If the run was stopped, the same command with --resume continues it; "
            "`tsugiki report` updates this page."
        )
    notes += choice_notes(record)
    if record.evaluations:
        last = record.evaluations[-1]
        if last.warning:
            notes.append(last.warning)
        if last.skipped_records:
            skipped = f"{last.skipped_records:,} held-out examples"
            notes.append(f"{skipped} are longer than the model's context and are not scored.")
    return notes


def _figures(record: RunRecord) -> Markup:
    rates = [(float(point.step), point.learning_rate) for point in record.loss_curve]
    plots = [
        curves(loss_series(record), "Loss by step, nats per token", below=Series("learning rate", rates)),
        curves(_bits_series(record), "Bits per character by step"),
    ]
    facts = []
    if len(record.evaluations) > 1:
        first, last = record.evaluations[0].bits_per_char, record.evaluations[-1].bits_per_char
        facts.append(("bits per character", f"{format_number(first)} → {format_number(last)}"))
    if record.parameters:
        facts.append(("trainable parameters", f"{record.parameters.trainable:,}"))
    if record.training:
        facts.append(("training time", format_duration(record.training.seconds)))
        facts.append(("speed", f"{record.training.tokens_per_second:,.0f} tokens/s"))
        facts += _peak_memory(record.training)
    return render_macro("facts", facts) + render_macro("figures", plots)


def _bits_series(record: RunRecord) -> list[Series]:
    lines = [held_out_series(record, "held-out, 95 % interval over documents")]
    return [*lines, *([_bits_by_step(record.validations, "validation", _VALIDATION)] if record.validations else [])]


def _evaluations(record: RunRecord) -> Markup:
    if not record.evaluations:
        return Markup()
    last = record.evaluations[-1]
    rows = [
        (
            text,
            str(entry.step),
            format_with_interval(entry.loss, entry.loss_interval),
            format_number(entry.perplexity),
            format_with_interval(entry.bits_per_char, entry.bits_per_char_interval),
            "–" if entry is entries[0] else format_change(change_of_bits(entries[0], entry)),
        )
        for text, entries in (("held-out", record.evaluations), ("validation", record.validations))
        for entry in entries
    ]
    explanation = (
        f"{last.characters:,} held-out characters in {last.tokens:,} tokens and {last.windows:,} windows. In brackets "
        "95 % intervals over documents. Between models with different tokenizers, compare bits per character."
    )
    headers = ("text", "step", "loss, nats per token", "perplexity", "bits per character", "change of bits")
    return render_macro("table", headers, rows) + render_macro("paragraph", explanation)


def _data(record: RunRecord) -> Markup:
    lines = [("read from", record.config.data_text)]
    data = record.data
    if data is None:
        return render_macro("pairs", lines)
    lines += [*data_lines(data), *near_duplicate_lines(data)]
    lines.append(("scored", f"{data.held_out.measured_characters:,} held-out characters"))
    fingerprints = [
        ("training texts", data.train.fingerprint),
        ("held-out texts", data.held_out.fingerprint),
        ("rows", data.blocks_fingerprint),
    ]
    return render_macro("pairs", lines) + render_macro("folded", "fingerprints", render_macro("pairs", fingerprints))


def _parameters(record: RunRecord) -> Markup:
    lines = []
    if record.base:
        lines.append(("base", record.base.name or "not named"))
        lines.append(("weights of the base", ", ".join(filter(None, (record.base.dtype, record.base.fingerprint)))))
        if record.base.code:
            lines.append(("code of the base, which was run", record.base.code))
    lines.append(("method", record.config.method))
    if record.parameters:
        counts = record.parameters
        lines.append(("trainable", f"{counts.trainable:,} of {counts.total:,} parameters, {counts.share:.2%}"))
    lines += [(name.replace("_", " "), format_value(value)) for name, value in record.resolved_settings.items()]
    return render_macro("pairs", lines)


def _settings(record: RunRecord) -> Markup:
    config = record.config
    lines = []
    if config.lora:
        lora = config.lora
        lines.append(("LoRA", f"r {lora.r}, alpha {lora.lora_alpha:g}, dropout {lora.lora_dropout:g}"))
    lines.append(("learning rate", f"{record.chosen('learning_rate')}, {config.lr_scheduler_type}"))
    lines.append(("rows per optimiser step", f"{record.chosen('batch_size')}"))
    if config.max_steps is None:
        lines.append(("epochs", f"{config.epochs:g}"))
    lines.append(("seed", str(config.seed)))
    everything = yaml.safe_dump(config.to_dict(), allow_unicode=True, sort_keys=False).strip()
    return render_macro("pairs", lines) + render_macro("folded", "all settings", render_macro("code", everything))


def _machine(record: RunRecord) -> Markup:
    lines = []
    if record.machine:
        lines += [(name, str(value)) for name, value in record.machine if value is not None]
    if record.training:
        training = record.training
        lines.append(("steps", f"{training.steps:,}"))
        lines.append(
            (
                "target tokens",
                f"{training.tokens:,} in {training.seconds:,.0f} s ({format_duration(training.seconds)}) of steps, "
                f"{training.tokens_per_second:,.0f} tokens/s",
            )
        )
        lines += _peak_memory(training)
    lines.append(("versions", ", ".join(f"{name} {version}" for name, version in record.versions.items())))
    for earlier in record.earlier_versions:
        changed = [f"{name} {version}" for name, version in earlier.items() if record.versions.get(name) != version]
        lines.append(("versions before it was resumed", ", ".join(changed)))
    return render_macro("pairs", lines)


def _peak_memory(training: TrainingFigures) -> list[tuple[str, str]]:
    """Return the line of the peak memory; nothing if the system does not report it."""
    return [("peak memory", format_gigabytes(training.peak_memory))] if training.peak_memory else []


def _usage(record: RunRecord, folder: Path) -> Markup:
    """Return commands for the trained adapter or model; nothing before the run has finished."""
    if record.status != "finished":
        return Markup()
    prompt = shlex.quote((record.config.prompts or ["…"])[0])
    if family_of(record.config.method) == "full fine-tuning":
        model = shlex.quote(str(folder))
        commands = (
            f"tsugiki generate --model {model} --prompt {prompt}\n"
            f"tsugiki eval --model {model} --data other.txt\n"
            f"tsugiki train --model {model} --data other.txt --out another"
        )
        python = (
            f"from transformers import AutoModelForCausalLM\n\nAutoModelForCausalLM.from_pretrained({str(folder)!r})"
        )
    else:
        base = record.base.name if record.base else None
        commands = adapter_commands(base, folder, prompt)
        python = (
            "from tsugiki import load_adapter\nfrom tsugiki.base.loading import load_model\n\n"
            f"model = load_model({base or 'BASE'!r})\n"
            f"load_adapter(model, {str(folder)!r})"
        )
    return render_macro("code", commands) + render_macro("code", python)


def _relative(before: float, after: float) -> str:
    finite = before and math.isfinite(before) and math.isfinite(after)
    return f"{after / before - 1:+.1%}" if finite else "–"
