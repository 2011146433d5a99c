"""`report.html` of a run: results, samples, data, settings and machine."""

import math
import shlex
from collections.abc import Sequence
from pathlib import Path

import yaml
from markupsafe import Markup

from tsugiki.io.atomic import write_text
from tsugiki.io.formatting import format_duration, format_gigabytes
from tsugiki.language import _, counts, marked, ngettext
from tsugiki.methods.table import family_of
from tsugiki.report.formatting import (
    Table,
    describe_change,
    format_change,
    format_number,
    format_value,
    format_with_interval,
)
from tsugiki.report.hints import hints
from tsugiki.report.page import page, render_macro
from tsugiki.report.plots import Series, curves, smoothed
from tsugiki.report.samples import all_samples, sample_columns
from tsugiki.train.evaluation.interval import Change, Interval
from tsugiki.train.evaluation.result import Evaluation, StepEvaluation, change_of_bits, warning_text
from tsugiki.train.record import NO_GAIN, DataSummary, RecordCounts, RunRecord, TrainingFigures, read_record

REPORT_FILE = "report.html"
_SECTIONS = 12  # a loss curve is smoothed over 1 / _SECTIONS of its points
_TRAINING, _HELD_OUT, _VALIDATION = 0, 1, 2  # colours
_FEW = 0.02  # share of tokens outside the loss; the first token of each document is one
_MUCH_FORGOTTEN = 0.03  # relative rise of the loss on the retention text
_DOCUMENT_MASKING = {
    "position_ids": marked("masked from each other by position ids"),
    "attention_mask": marked("masked from each other by an attention mask"),
    "separate_rows": marked("in separate rows"),
}

_LABELS = (
    marked("base dropout"),
    marked("base dtype"),
    marked("batch size"),
    marked("block size"),
    marked("compute dtype"),
    marked("learning rate"),
    marked("target modules"),
    marked("processor"),
    marked("cores"),
    marked("threads"),
    marked("accelerator"),
    marked("processes"),
    marked("system"),
    marked("python"),
)
"""Labels of settings that a run has chosen, and of facts about its machine."""


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
    title = _("Run · {name}").format(name=folder.resolve().name)
    sections = [*record_sections(record), (_("Usage"), _usage(record, folder))]
    return page(title, summary_sentence(record), sections, _notes(record))


def record_sections(record: RunRecord) -> list[tuple[str, Markup]]:
    """Render the sections of a page for a record; those without content are empty."""
    return [
        (_("Held-out text and loss"), _figures(record)),
        (_("Samples"), sample_columns([("", record)]) + all_samples(record)),
        (_("Evaluations"), _evaluations(record)),
        (_("Data"), _data(record)),
        (_("Model and method"), _parameters(record)),
        (_("Settings"), _settings(record)),
        (_("Machine"), _machine(record)),
    ]


def held_out_table(record: RunRecord) -> Table:
    """Return the held-out figures before and after training, with 95 % intervals; no rows if one of them is missing."""
    rows = []
    if len(record.evaluations) > 1:
        figures = zip(_figures_of(record.evaluations[0]), _figures_of(record.evaluations[-1]), strict=True)
        for (label, before, before_interval), (_same, after, after_interval) in figures:
            texts = format_with_interval(before, before_interval), format_with_interval(after, after_interval)
            rows.append([label, *texts, _relative(before, after)])
    return [_("held-out text"), _("before"), _("after"), _("change")], rows


def change_of_run(record: RunRecord) -> Change:
    """Return the change of the held-out bits per character from the first to the last evaluation of a run."""
    return change_of_bits(record.evaluations[0], record.evaluations[-1])


def summary_sentence(record: RunRecord) -> str:
    """Return what the run has done to the held-out figures, in one sentence."""
    if not record.evaluations:
        return _("There is no evaluation yet.")
    before, after = record.evaluations[0], record.evaluations[-1]
    figures = _("{bits} bits per character (loss {loss})").format(
        bits=format_number(after.bits_per_char), loss=format_number(after.loss)
    )
    if len(record.evaluations) == 1:
        message = _("At step {step} the held-out text needs {figures}; there is no later evaluation yet.")
        return message.format(step=after.step, figures=figures)
    change = change_of_run(record)
    if math.isnan(change.relative):
        message = _("At step {step} the held-out text needs {figures}; the change cannot be computed.")
        return message.format(step=after.step, figures=figures)
    message = _(
        "After {steps} the held-out text needs {figures} instead of {bits} (loss {loss}): {change:+.1%} ({interval})."
    )
    return message.format(
        steps=counts.steps(after.step),
        figures=figures,
        bits=format_number(before.bits_per_char),
        loss=format_number(before.loss),
        change=change.relative,
        interval=describe_change(change),
    )


def speed_text(record: RunRecord) -> str:
    """Return the speed of a run in tokens per second, as other tools report it: tokens outside the loss count, too.

    If there are such tokens, as in conversations, the speed without them is named as well.
    """
    both, in_loss = record.all_tokens_per_second(), record.training.tokens_per_second if record.training else 0.0
    if both <= in_loss * (1 + _FEW):
        return _("{speed:,.0f} tokens/s").format(speed=in_loss)
    return _("{speed:,.0f} tokens/s, {in_loss:,.0f} of them in the loss").format(speed=both, in_loss=in_loss)


def loss_series(record: RunRecord) -> list[Series]:
    """Return lines for training loss, smoothed training loss, validation and held-out loss, in nats per token."""
    points = [(float(point.step), point.loss) for point in record.loss_curve]
    window = max(1, len(points) // _SECTIONS) | 1
    if window == 1:
        training = [Series(_("training"), points, colour=_TRAINING)] if points else []
    else:
        training = [
            Series(_("training"), points, colour=_TRAINING, faint=True),
            Series(_("training, mean of {window}").format(window=window), smoothed(points, window), colour=_TRAINING),
        ]
    lines = [
        _by_step(entries, name, [(entry.loss, entry.loss_interval) for entry in entries], colour)
        for entries, name, colour in (
            (record.validations, _("validation"), _VALIDATION),
            (record.evaluations, _("held-out"), _HELD_OUT),
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
        (_("training data"), _size(data.train)),
        *(
            [(_("of these mixed in"), f"{counts.records(data.mixed.documents)}, {data.mixed.share:.1%}")]
            if data.mixed
            else []
        ),
        (_("held out"), _size(data.held_out)),
        *_validation_line(data),
        (_("tokens per epoch"), f"{data.tokens_per_epoch:,}"),
        (
            _("target tokens per epoch"),
            f"{data.target_tokens_per_epoch:,}, {data.target_tokens_per_epoch / data.tokens_per_epoch:.1%}",
        ),
        (
            _("rows"),
            _("{rows:,} of {size} tokens, {padding:.1%} padding").format(
                rows=data.blocks, size=data.block_size, padding=data.padding / size
            ),
        ),
        (_("documents in a row"), _(_DOCUMENT_MASKING[data.document_masking])),
        (_("continue in other rows"), counts.documents(data.split_records)),
        (_("cut off"), f"{counts.examples(data.cut_records)}, {counts.tokens(data.cut_tokens)}"),
        (
            _("near-duplicates"),
            _("{records} in {groups}").format(
                records=counts.records(data.near_duplicates.records), groups=counts.groups(data.near_duplicates.groups)
            ),
        ),
    ]


def _size(part: RecordCounts) -> str:
    return f"{counts.records(part.documents)}, {counts.characters(part.characters)}"


def _validation_line(data: DataSummary) -> list[tuple[str, str]]:
    validation = data.validation
    if validation is None:
        return []
    if validation.from_held_out:
        return [(_("validation"), _("every second window of the held-out records"))]
    return [(_("validation"), _size(validation))]


def near_duplicate_lines(data: DataSummary) -> list[tuple[str, str]]:
    """Return labels and texts for the first groups of near-duplicates: the names of their records."""
    return [(_("  group"), " · ".join(group)) for group in data.near_duplicates.first]


def adapter_commands(base: str | None, folder: Path, prompt: str) -> str:
    """Return commands that use an adapter, as lines for a shell."""
    model, adapter = shlex.quote(base or "BASE"), shlex.quote(str(folder))
    return (
        f"tsugiki generate --model {model} --adapter {adapter} --prompt {prompt}\n"
        f"tsugiki eval --adapter {adapter} --data other.txt\n"
        f"tsugiki merge --model {model} --adapter {adapter} --out merged"
    )


def choice_notes(record: RunRecord) -> list[str]:
    """Return what a run has decided by its losses, and what its figures suggest, one sentence each."""
    notes = [
        _(
            "The training loss rose until step {step:,} at a learning rate of {rate:g}, so the run began again with a "
            "third of it."
        ).format(step=restart.step, rate=restart.learning_rate)
        for restart in record.restarts
    ]
    if record.kept_step is not None and record.training and record.kept_step < record.training.steps:
        notes.append(
            _(
                "Step {kept_step:,} had the lowest loss on the validation text and is kept; the run ended after step "
                "{steps:,} of {planned}."
            ).format(
                kept_step=record.kept_step,
                steps=record.training.steps,
                planned=record.resolved_settings.get("steps", "?"),
            )
        )
    if not record.any_step_is_better():
        notes.append(_sentence(_(NO_GAIN)))
    retention = [entry.loss for entry in record.retention_evaluations]
    rise = retention[-1] / retention[0] - 1 if retention else 0.0
    if rise > _MUCH_FORGOTTEN:
        notes.append(
            _(
                "The loss on the retention text rose by {rise:.1%}: with --mix FILE:0.1, a run trains on such text as "
                "well and forgets less."
            ).format(rise=rise)
        )
    return [*notes, *hints(record)]


def _sentence(text: str) -> str:
    return text if text.endswith("。") else f"{text[0].upper()}{text[1:]}."


def _figures_of(result: Evaluation) -> list[tuple[str, float, Interval | None]]:
    return [
        (_("loss"), result.loss, result.loss_interval),
        (_("perplexity"), result.perplexity, result.perplexity_interval),
        (_("bits per character"), result.bits_per_char, result.bits_per_char_interval),
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
        done = f"{steps:,}"
        if isinstance(planned, int):
            done = _("{done:,} of {planned:,}").format(done=steps, planned=planned)
        notes.append(
            _(
                "Not finished: step {done}. If the run was stopped, `{command}` continues it; `tsugiki report` updates "
                "this page."
            ).format(done=done, command=shlex.join(["tsugiki", "train", "--resume", record.config.out or ""]))
        )
    notes += choice_notes(record)
    if record.evaluations:
        last = record.evaluations[-1]
        if last.warning:
            notes.append(warning_text(last))
        if last.skipped_records:
            notes.append(
                ngettext(
                    "{count:,} held-out example is longer than the model's context and is not scored.",
                    "{count:,} held-out examples are longer than the model's context and are not scored.",
                    last.skipped_records,
                ).format(count=last.skipped_records)
            )
    return notes


def _figures(record: RunRecord) -> Markup:
    rates = [(float(point.step), point.learning_rate) for point in record.loss_curve]
    plots = [
        curves(loss_series(record), _("Loss by step, nats per token"), below=Series(_("learning rate"), rates)),
        curves(_bits_series(record), _("Bits per character by step")),
    ]
    facts = []
    if len(record.evaluations) > 1:
        first, last = record.evaluations[0].bits_per_char, record.evaluations[-1].bits_per_char
        facts.append((_("bits per character"), f"{format_number(first)} → {format_number(last)}"))
    if record.parameters:
        facts.append((_("trainable parameters"), f"{record.parameters.trainable:,}"))
    if record.training:
        facts.append((_("training time"), format_duration(record.training.seconds)))
        facts.append((_("speed"), speed_text(record)))
        facts += _peak_memory(record.training)
    return render_macro("facts", facts) + render_macro("figures", plots)


def _bits_series(record: RunRecord) -> list[Series]:
    lines = [held_out_series(record, _("held-out, 95 % interval over documents"))]
    return [*lines, *([_bits_by_step(record.validations, _("validation"), _VALIDATION)] if record.validations else [])]


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
        for text, entries in ((_("held-out"), record.evaluations), (_("validation"), record.validations))
        for entry in entries
    ]
    explanation = _(
        "Held-out text: {characters} in {tokens} and {windows}. In brackets 95 % intervals over documents. Between "
        "models with different tokenizers, compare bits per character."
    ).format(
        characters=counts.characters(last.characters),
        tokens=counts.tokens(last.tokens),
        windows=counts.windows(last.windows),
    )
    headers = (
        _("text"),
        _("step"),
        _("loss, nats per token"),
        _("perplexity"),
        _("bits per character"),
        _("change of bits"),
    )
    return render_macro("table", headers, rows) + render_macro("paragraph", explanation)


def _data(record: RunRecord) -> Markup:
    lines = [(_("read from"), record.config.data_text)]
    data = record.data
    if data is None:
        return render_macro("pairs", lines)
    lines += [*data_lines(data), *near_duplicate_lines(data)]
    lines.append(
        (
            _("scored"),
            _("{characters} of the held-out text").format(
                characters=counts.characters(data.held_out.measured_characters)
            ),
        )
    )
    fingerprints = [
        (_("training texts"), data.train.fingerprint),
        (_("held-out texts"), data.held_out.fingerprint),
        (_("rows"), data.blocks_fingerprint),
    ]
    return render_macro("pairs", lines) + render_macro("folded", _("fingerprints"), render_macro("pairs", fingerprints))


def _parameters(record: RunRecord) -> Markup:
    lines = []
    if record.base:
        lines.append((_("base"), record.base.name or _("not named")))
        lines.append((_("weights of the base"), ", ".join(filter(None, (record.base.dtype, record.base.fingerprint)))))
        if record.base.code:
            lines.append((_("code of the base, which was run"), record.base.code))
    lines.append((_("method"), record.config.method))
    if record.parameters:
        text = _("{trainable:,} of {total:,} parameters, {share:.2%}").format(
            trainable=record.parameters.trainable, total=record.parameters.total, share=record.parameters.share
        )
        lines.append((_("trainable"), text))
    lines += [(_label(name), _(format_value(value))) for name, value in record.resolved_settings.items()]
    return render_macro("pairs", lines)


def _settings(record: RunRecord) -> Markup:
    config = record.config
    lines = []
    if config.lora:
        lora = config.lora
        lines.append(
            (
                "LoRA",
                _("r {r}, alpha {alpha:g}, dropout {dropout:g}").format(
                    r=lora.r, alpha=lora.lora_alpha, dropout=lora.lora_dropout
                ),
            )
        )
    lines.append((_("learning rate"), f"{record.chosen('learning_rate')}, {config.lr_scheduler_type}"))
    lines.append((_("rows per optimiser step"), f"{record.chosen('batch_size')}"))
    if config.max_steps is None:
        lines.append((_("epochs"), f"{config.epochs:g}"))
    lines.append((_("seed"), str(config.seed)))
    everything = yaml.safe_dump(config.to_dict(), allow_unicode=True, sort_keys=False).strip()
    return render_macro("pairs", lines) + render_macro("folded", _("all settings"), render_macro("code", everything))


def _label(name: str) -> str:
    """Return the name of a setting or of a fact about the machine as a label."""
    return _(name.replace("_", " "))


def _machine(record: RunRecord) -> Markup:
    lines = []
    if record.machine:
        lines += [(_label(name), str(value)) for name, value in record.machine if value is not None]
    if record.training:
        training = record.training
        lines.append((_("steps"), f"{training.steps:,}"))
        lines.append(
            (
                _("target tokens"),
                _("{tokens:,} in {seconds:,.0f} s ({duration}) of steps, {speed}").format(
                    tokens=training.tokens,
                    seconds=training.seconds,
                    duration=format_duration(training.seconds),
                    speed=speed_text(record),
                ),
            )
        )
        lines += _peak_memory(training)
    lines.append((_("versions"), ", ".join(f"{name} {version}" for name, version in record.versions.items())))
    for earlier in record.earlier_versions:
        changed = [f"{name} {version}" for name, version in earlier.items() if record.versions.get(name) != version]
        lines.append((_("versions before it was resumed"), ", ".join(changed)))
    return render_macro("pairs", lines)


def _peak_memory(training: TrainingFigures) -> list[tuple[str, str]]:
    """Return the line of the peak memory; nothing if the system does not report it."""
    return [(_("peak memory"), format_gigabytes(training.peak_memory))] if training.peak_memory else []


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
