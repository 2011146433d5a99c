"""`report.html` of a run: results, samples, data, settings and machine."""

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import yaml
from markupsafe import Markup

from tsugiki.io.atomic import write_text
from tsugiki.io.formatting import format_duration
from tsugiki.language import _, counts, marked, ngettext
from tsugiki.methods.table import family_of
from tsugiki.report.decisions import decision_table
from tsugiki.report.formatting import (
    FEW_DOCUMENTS,
    describe_intervals,
    format_change,
    format_number,
    format_value,
    format_with_interval,
)
from tsugiki.report.page import in_frame, page, render_macro
from tsugiki.report.pairs import accuracy_series, margin_series, pair_table, probability_series
from tsugiki.report.plots import Series, curves, smoothed
from tsugiki.report.record_text import (
    data_lines,
    fingerprint_lines,
    near_duplicate_lines,
    peak_memory_lines,
    run_notes,
    settings_lines,
    speed_text,
    summary_sentence,
)
from tsugiki.report.table import Table
from tsugiki.training.record.interval import Interval
from tsugiki.training.record.result import StepEvaluation, change_of_bits, warning_text
from tsugiki.training.record.run_record import RunRecord, Sample, read_record, samples_by_prompt

REPORT_FILE = "report.html"
_SECTIONS = 12  # a loss curve is smoothed over 1 / _SECTIONS of its points
_TRAINING, _HELD_OUT, _VALIDATION = 0, 1, 2  # colours
_LABELS = (
    marked("base dropout"), marked("base dtype"), marked("batch size"), marked("block size"), marked("compute dtype"),
    marked("learning rate"), marked("product dtype"), marked("target modules"), marked("processor"), marked("cores"),
    marked("threads"), marked("accelerator"), marked("processes"), marked("system"), marked("python"),
    marked("c functions"),
)  # fmt: skip
"""Labels of settings that a run has chosen, and of facts about its machine."""


def write_report(folder: Path) -> Path:
    """Write `report.html` from the `run.json` in the same folder. The run need not be finished."""
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
        (_("Pairs"), _pairs(record)),
        (_("Held-out text and loss"), _figures(record)),
        (_("Samples"), sample_columns([("", record)]) + all_samples(record)),
        (_("What was decided, and from how much text"), _decisions(record)),
        (_("Evaluations"), _evaluations(record)),
        (_("Data"), _data(record)),
        (_("Model and method"), _parameters(record)),
        (_("Settings"), _settings(record)),
        (_("Machine"), _machine(record)),
    ]


class ShownRecord(RunRecord):
    """The record of a run, which a notebook shows as a small report: its result, curves and samples."""

    def _repr_html_(self) -> str:
        folder = self.config.out
        whole = Path(folder) / REPORT_FILE if folder else None
        curves_and_samples = record_sections(self)[:3]
        notes = [_("the whole report: {path}").format(path=whole)] if whole and whole.is_file() else []
        return in_frame(page(folder or _("run"), summary_sentence(self), curves_and_samples, notes))


def adapter_commands(base: str | None, folder: Path, prompt: str) -> str:
    """Return commands that use an adapter, as lines for a shell."""
    model, adapter = shlex.quote(base or "BASE"), shlex.quote(str(folder))
    return (
        f"tsugiki generate --model {model} --adapter {adapter} --prompt {prompt}\n"
        f"tsugiki eval --adapter {adapter} --data other.txt\n"
        f"tsugiki merge --model {model} --adapter {adapter} --out merged"
    )


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
    notes += run_notes(record)
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
        curves(bits_series(record), _("Bits per character by step")),
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
        facts += peak_memory_lines(record.training)
    return render_macro("facts", facts) + render_macro("figures", plots)


def _decisions(record: RunRecord) -> Markup:
    table = decision_table(record)
    return table.to_html() if table.rows else Markup()


def _pairs(record: RunRecord) -> Markup:
    """Render how often pairs are right; empty for a run that learns texts."""
    if not record.preference_curve and not record.pair_evaluations:
        return Markup()
    plots = [
        curves(accuracy_series(record), _("Share of pairs that are right, by step")),
        curves(margin_series(record), _("Margin between chosen and rejected answers, by step")),
        curves(probability_series(record), _("Log-probability of an answer by step, nats")),
    ]
    table = pair_table(record)
    return render_macro("figures", plots) + (table.to_html() if table.rows else Markup())


def _evaluations(record: RunRecord) -> Markup:
    if not record.evaluations:
        return Markup()
    last = record.evaluations[-1]
    rows = [
        [
            text,
            str(entry.step),
            format_with_interval(entry.loss, entry.loss_interval),
            format_number(entry.perplexity),
            format_with_interval(entry.bits_per_char, entry.bits_per_char_interval),
            "–" if entry is entries[0] else format_change(change_of_bits(entries[0], entry)),
        ]
        for text, entries in ((_("held-out"), record.evaluations), (_("validation"), record.validations))
        for entry in entries
    ]
    explanation = _(
        "Held-out text: {characters} in {tokens} and {windows}. Between models with different tokenizers, compare bits "
        "per character."
    ).format(
        characters=counts.characters(last.characters),
        tokens=counts.tokens(last.tokens),
        windows=counts.windows(last.windows),
    )
    headers = [_("text"), _("step"), _("loss, nats per token"), _("perplexity"), _("bits per character")]
    headers.append(_("change of bits"))
    intervals = describe_intervals(len(last.independent))
    return Table(headers, rows).to_html() + render_macro("paragraph", f"{explanation} {intervals}")


def _data(record: RunRecord) -> Markup:
    lines = [(_("read from"), record.config.data_text)]
    data = record.data
    if data is None:
        return render_macro("pairs", lines)
    lines += [*data_lines(data), *near_duplicate_lines(data)]
    scored = record.evaluations[-1].characters if record.evaluations else data.held_out.measured_characters
    if scored:
        characters = counts.characters(scored)
        lines.append((_("scored"), _("{characters} of the held-out text").format(characters=characters)))
    fingerprints = render_macro("pairs", fingerprint_lines(data))
    return render_macro("pairs", lines) + render_macro("folded", _("fingerprints"), fingerprints)


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
        text = _("r {r}, alpha {alpha:g}, dropout {dropout:g}")
        lora = config.lora
        lines.append(("LoRA", text.format(r=lora.r, alpha=lora.lora_alpha, dropout=lora.lora_dropout)))
    lines += settings_lines(record)
    everything = yaml.safe_dump(config.to_dict(), allow_unicode=True, sort_keys=False).strip()
    return render_macro("pairs", lines) + render_macro("folded", _("all settings"), render_macro("code", everything))


def _label(name: str) -> str:
    """Return the name of a setting or of a fact about the machine as a label."""
    return _(name.replace("_", " "))


def _machine(record: RunRecord) -> Markup:
    lines = []
    if record.machine:
        texts = {True: _("yes"), False: _("no")}
        lines += [
            (_label(name), texts[value] if isinstance(value, bool) else str(value))
            for name, value in record.machine
            if value is not None
        ]
    if record.training:
        training = record.training
        lines.append((_("steps"), f"{training.steps:,}"))
        text = _("{tokens:,} in {seconds:,.0f} s ({duration}) of steps, {speed}").format(
            tokens=training.tokens,
            seconds=training.seconds,
            duration=format_duration(training.seconds),
            speed=speed_text(record),
        )
        lines.append((_("target tokens"), text))
        lines += peak_memory_lines(training)
    lines.append((_("versions"), ", ".join(f"{name} {version}" for name, version in record.versions.items())))
    for earlier in record.earlier_versions:
        changed = [f"{name} {version}" for name, version in earlier.items() if record.versions.get(name) != version]
        lines.append((_("versions before it was resumed"), ", ".join(changed)))
    return render_macro("pairs", lines)


def _usage(record: RunRecord, folder: Path) -> Markup:
    """Return commands for the trained adapter or model; empty before the run has finished."""
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


def bits_series(record: RunRecord) -> list[Series]:
    """Return lines for the bits per character of the held-out and of the validation text, with intervals."""
    held_out = bits_by_step(record.evaluations, _("held-out"), _HELD_OUT)
    if held_out.band:
        held_out = replace(held_out, name=_("held-out, 95 % interval over documents"))
    validation = [bits_by_step(record.validations, _("validation"), _VALIDATION)] if record.validations else []
    return [*([held_out] if held_out.points else []), *validation]


def bits_by_step(entries: Sequence[StepEvaluation], name: str, colour: int) -> Series:
    """Return a line for the bits per character by step, with intervals."""
    return _by_step(entries, name, [(entry.bits_per_char, entry.bits_per_char_interval) for entry in entries], colour)


def _by_step(
    entries: Sequence[StepEvaluation], name: str, figures: list[tuple[float, Interval | None]], colour: int
) -> Series:
    """Return a line with a point for each evaluation, and a band if the intervals are narrow enough to see the line."""
    points = [(float(entry.step), figure) for entry, (figure, _) in zip(entries, figures, strict=True)]
    many = all(len(entry.independent) >= FEW_DOCUMENTS for entry in entries)
    band = [interval for _, interval in figures if interval is not None]
    return Series(name, points, band if many and len(band) == len(points) else [], colour)


def sample_columns(runs: Sequence[tuple[str, RunRecord]]) -> Markup:
    """Render, for each prompt, a row of samples for each run; an empty name of a run is not shown."""
    shown = [_shown_by_prompt(record, name) for name, record in runs]
    prompts = dict.fromkeys(prompt for cells in shown for prompt in cells)
    return render_macro("samples", [(prompt, [cells.get(prompt, []) for cells in shown]) for prompt in prompts])


def shown_samples(record: RunRecord) -> list[tuple[str, str, str]]:
    """Return (label, prompt, text) for the first, the middle and the last sample of each prompt."""
    return [cell for cells in _shown_by_prompt(record, "").values() for cell in cells]


def _shown_by_prompt(record: RunRecord, name: str) -> dict[str, list[tuple[str, str, str]]]:
    found = {}
    for prompt, samples in samples_by_prompt(record).items():
        shown = [samples[position] for position in sorted({0, len(samples) // 2, len(samples) - 1})]
        found[prompt] = [(_sample_label(name, sample, record), prompt, sample.text) for sample in shown]
    return found


def all_samples(record: RunRecord) -> Markup:
    """Render every sample in a folded section; empty if each prompt has at most three samples."""
    if len(record.samples) <= 3 * len({sample.prompt for sample in record.samples}):
        return Markup()
    cells = [(_sample_label("", sample, record), sample.prompt, sample.text) for sample in record.samples]
    return render_macro(
        "folded", _("all {count:,} samples").format(count=len(cells)), render_macro("sample_row", cells)
    )


def _sample_label(name: str, sample: Sample, record: RunRecord) -> str:
    last = record.training.steps if record.status == "finished" and record.training is not None else None
    if sample.step == 0:
        when = _("base model")
    elif sample.step == last:
        when = _("step {step}, the end").format(step=sample.step)
    elif last is not None and sample.step == record.kept_step:
        when = _("step {step}, kept").format(step=sample.step)
    else:
        when = _("step {step}").format(step=sample.step)
    return f"{name} · {when}" if name else when
