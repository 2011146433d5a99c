"""What a run's record shows, as sections, and its page `report.html`."""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import yaml

from tsugiki.io.atomic import write_text
from tsugiki.io.formatting import format_duration, format_gigabytes
from tsugiki.language import _, counts, marked, ngettext
from tsugiki.methods.table import family_of
from tsugiki.report.formatting import describe_intervals, format_number, format_value
from tsugiki.report.html import in_frame, smoothed, whole_page
from tsugiki.report.pairs import pair_curves, pair_table
from tsugiki.report.record_text import (
    data_lines,
    held_out_table,
    near_duplicate_lines,
    run_notes,
    speed_text,
    summary_sentence,
)
from tsugiki.report.rewards import reward_parts
from tsugiki.report.sections import (
    Code,
    Curves,
    Facts,
    Folded,
    Lead,
    Lines,
    Note,
    Part,
    Row,
    Samples,
    Section,
    Sentence,
    Series,
    answer_label,
    section,
    selected,
)
from tsugiki.report.table import Table
from tsugiki.training.choose.decisions import looks
from tsugiki.training.record.result import Answer, StepAnswers, StepEvaluation, change_of_bits, warning_text
from tsugiki.training.record.run_record import RunRecord, read_record, samples_by_prompt

REPORT_FILE = "report.html"
RESULTS = ("answers", "samples", "result", "rewards", "pairs", "notes", "held_out")
"""The sections that are shown where there is no room for all."""
_SHOWN = 3
"""Prompts, and questions, whose texts are not folded."""
_PARTS = 12  # a loss curve is smoothed over 1 / _PARTS of its points
_SHOWN_ELSEWHERE = {"learning_rate", "head_factor", "steps"}
"""Settings that a run has chosen, and that the page shows among its decisions or figures."""
_TRAINING, _HELD_OUT, _VALIDATION = 0, 1, 2  # colours
_LABELS = (
    marked("base dropout"), marked("base dtype"), marked("batch size"), marked("block size"), marked("compute dtype"),
    marked("product dtype"), marked("target modules"), marked("processor"), marked("cores"), marked("threads"),
    marked("accelerator"), marked("processes"), marked("system"), marked("python"),
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
    title = _("Run · {name}", name=folder.resolve().name)
    usage = section("usage", _("Usage"), *_usage(record, folder))
    return whole_page(title, [*_result(record), usage, *_figures(record)])


def run_sections(record: RunRecord) -> list[Section]:
    """Return everything that is shown about a run, with what its record contains so far."""
    return [*_result(record), *_figures(record)]


def _result(record: RunRecord) -> list[Section]:
    """Return what a run has learned, by examples and in a sentence, and what to know about it."""
    return [
        section("answers", _("Held-out questions"), *_answers(record)[:_SHOWN]),
        section("samples", _("Samples"), *samples_of([("", record)])[:_SHOWN]),
        section("result", _("Result"), Lead(summary_sentence(record))),
        section("notes", "", *map(Sentence, _unfinished(record)), *_scoring_notes(record), *run_notes(record)),
    ]


def _figures(record: RunRecord) -> list[Section]:
    """Return the figures of a run, what it has decided and learned from, its settings and its machine."""
    return [
        section("rewards", _("Reward by round"), *reward_parts(record)),
        section("pairs", _("Pairs"), pair_table(record), *pair_curves(record)),
        section("held_out", _("Held-out text and loss"), *_held_out(record)),
        section("all samples", "", _all_answers(record), _all_samples(record)),
        section("decisions", _("What was decided, and from how much text"), decision_table(record)),
        section("data", _("Data"), Lines(_data(record))),
        section("model", _("Model and method"), Lines(_model(record))),
        section("settings", _("Settings"), _settings(record)),
        section("machine", _("Machine"), Lines(_machine(record))),
    ]


class ShownRecord(RunRecord):
    """The record of a run, which a notebook shows as a small report: its result, curves and samples."""

    def _repr_html_(self) -> str:
        folder = self.config.out
        whole = Path(folder) / REPORT_FILE if folder else None
        shown = selected(run_sections(self), *RESULTS)
        if whole and whole.is_file():
            shown.append(section("whole", "", Sentence(_("the whole report: {path}", path=whole))))
        return in_frame(whole_page(folder or _("run"), shown))


def adapter_commands(base: str | None, folder: Path, prompt: str) -> Code:
    """Return commands that use an adapter, for a shell."""
    model, adapter, prompt = shlex.quote(base or "BASE"), shlex.quote(str(folder)), shlex.quote(prompt)
    return Code(
        f"tsugiki generate --model {model} --adapter {adapter} --prompt {prompt}\n"
        f"tsugiki eval --adapter {adapter} --data other.txt\n"
        f"tsugiki merge --model {model} --adapter {adapter} --out merged"
    )


def _unfinished(record: RunRecord) -> list[str]:
    if record.status == "finished":
        return []
    steps = record.training.steps if record.training else 0
    planned = record.resolved_settings.get("steps")
    done = _("round {step}", step=record.rounds[-1].round) if record.rounds else f"{steps:,}"
    if isinstance(planned, int):
        done = _("{done:,} of {planned:,}", done=steps, planned=planned)
    message = _(
        "Not finished: step {done}. If the run was stopped, `{command}` continues it; `tsugiki report` updates "
        "this page."
    )
    command = shlex.join(["tsugiki", "train", "--resume", record.config.out or ""])
    return [message.format(done=done, command=command)]


def _scoring_notes(record: RunRecord) -> Iterator[Part]:
    """Yield what makes the last held-out figures differ from what one expects."""
    for last in record.evaluations[-1:]:
        if last.warning:
            yield Note(warning_text(last))
        if last.skipped_records:
            message = ngettext(
                "{count:,} held-out example is longer than the model's context and is not scored.",
                "{count:,} held-out examples are longer than the model's context and are not scored.",
                last.skipped_records,
                count=last.skipped_records,
            )
            yield Sentence(message)


def _held_out(record: RunRecord) -> Iterator[Part]:
    yield held_out_table(record)
    for last in record.evaluations[-1:]:
        message = _(
            "{intervals} Between models with different tokenizers, compare bits per character.",
            intervals=describe_intervals(len(last.independent)),
        )
        yield Sentence(message)
    yield Facts(_training(record))
    step = record.kept_step if record.status == "finished" else None
    kept = None if step is None else (step, _("kept"))
    yield Curves(_("Change of the bits per character against the base, by step, %"), _changes(record), kept)
    yield Curves(_("Training loss by step, nats per token"), _losses(record), kept)


def _training(record: RunRecord) -> list[Row]:
    training = record.training
    if training is None:
        return []
    exact, short = _("{seconds:.0f} s", seconds=training.seconds), format_duration(training.seconds)
    return [
        (_("steps"), f"{training.steps:,}"),
        (_("tokens in the loss"), f"{training.tokens:,}"),
        (_("training time"), exact if exact == short else _("{exact} ({short})", exact=exact, short=short)),
        (_("speed"), speed_text(record)),
        *([(_("peak memory"), format_gigabytes(training.peak_memory))] if training.peak_memory else []),
    ]


def _data(record: RunRecord) -> list[Row]:
    lines = [(_("read from"), record.config.data_text)]
    data = record.data
    if data is None:
        return lines
    lines += [*data_lines(data), *near_duplicate_lines(data)]
    if record.evaluations:
        last = record.evaluations[-1]
        scored = _(
            "{characters} of the held-out text, in {tokens} and {windows}",
            characters=counts.characters(last.characters),
            tokens=counts.tokens(last.tokens),
            windows=counts.windows(last.windows),
        )
        lines.append((_("scored"), scored))
    return lines


def _model(record: RunRecord) -> list[Row]:
    lines = []
    if record.base:
        lines.append((_("base"), record.base.name or _("not named")))
        lines.append((_("weights of the base"), ", ".join(filter(None, (record.base.dtype, record.base.fingerprint)))))
        if record.base.code:
            lines.append((_("code of the base, which was run"), record.base.code))
    lines.append((_("method"), record.config.method))
    if lora := record.config.lora:
        lines.append(
            (
                "LoRA",
                _(
                    "r {r}, alpha {alpha:g}, dropout {dropout:g}",
                    r=lora.r,
                    alpha=lora.lora_alpha,
                    dropout=lora.lora_dropout,
                ),
            )
        )
    if record.parameters:
        text = _(
            "{trainable:,} of {total:,} parameters, {share:.2%}",
            trainable=record.parameters.trainable,
            total=record.parameters.total,
            share=record.parameters.share,
        )
        lines.append((_("trainable"), text))
    chosen = {name: value for name, value in record.resolved_settings.items() if name not in _SHOWN_ELSEWHERE}
    return lines + [(_label(name), _(format_value(value))) for name, value in chosen.items()]


def _settings(record: RunRecord) -> Folded:
    everything = yaml.safe_dump(record.config.to_dict(), allow_unicode=True, sort_keys=False).strip()
    return Folded(_("all settings"), [Code(everything)])


def _label(name: str) -> str:
    """Return the name of a setting or of a fact about the machine as a label."""
    return _(name.replace("_", " "))


def _machine(record: RunRecord) -> list[Row]:
    texts = {True: _("yes"), False: _("no")}
    lines = [
        (_label(name), texts[value] if isinstance(value, bool) else str(value))
        for name, value in record.machine or ()
        if value is not None
    ]
    lines.append((_("versions"), ", ".join(f"{name} {version}" for name, version in record.versions.items())))
    for earlier in record.earlier_versions:
        changed = [f"{name} {version}" for name, version in earlier.items() if record.versions.get(name) != version]
        lines.append((_("versions before it was resumed"), ", ".join(changed)))
    return lines


def _usage(record: RunRecord, folder: Path) -> list[Code]:
    """Return commands for the trained adapter or model; none before the run has finished."""
    if record.status != "finished":
        return []
    prompt = (record.config.prompts or ["…"])[0]
    if family_of(record.config.method) == "full fine-tuning":
        model = shlex.quote(str(folder))
        commands = (
            f"tsugiki generate --model {model} --prompt {shlex.quote(prompt)}\n"
            f"tsugiki eval --model {model} --data other.txt\n"
            f"tsugiki train --model {model} --data other.txt --out another"
        )
        python = (
            f"from transformers import AutoModelForCausalLM\n\nAutoModelForCausalLM.from_pretrained({str(folder)!r})"
        )
        return [Code(commands), Code(python, "python")]
    base = record.base.name if record.base else None
    python = (
        "from tsugiki import load_adapter\nfrom tsugiki.base.loading import load_model\n\n"
        f"model = load_model({base or 'BASE'!r})\n"
        f"load_adapter(model, {str(folder)!r})"
    )
    return [adapter_commands(base, folder, prompt), Code(python, "python")]


def _losses(record: RunRecord) -> list[Series]:
    """Return lines for the training loss and for its mean over some steps, in nats per token."""
    points = [(float(point.step), point.loss) for point in record.loss_curve]
    window = max(1, len(points) // _PARTS) | 1
    losses = Series(_("training"), points, colour=_TRAINING, faint=window > 1)
    mean = Series(_("training, mean of {window}", window=window), smoothed(points, window), colour=_TRAINING)
    return [losses, mean] if window > 1 else [losses]


def _changes(record: RunRecord) -> list[Series]:
    """Return lines for the change of the bits per character in percent, of the held-out text with its interval."""
    held_out = _change(record.evaluations, _("held-out, with its 95 % interval"), _HELD_OUT)
    return [held_out, replace(_change(record.validations, _("validation"), _VALIDATION), band=())]


def _change(evaluations: Sequence[StepEvaluation], name: str, colour: int) -> Series:
    """Return the changes against the first of several evaluations, in percent, with intervals if all have one."""
    found = [(float(one.step), change_of_bits(evaluations[0], one)) for one in evaluations[1:]]
    points = [(step, 100 * change.relative) for step, change in found]
    band = [(100 * low, 100 * high) for _step, change in found for low, high in filter(None, [change.interval])]
    start = [(0.0, 0.0)] if points else []
    return Series(name, start + points, start + band if len(band) == len(points) else [], colour)


def samples_of(runs: Sequence[tuple[str, RunRecord]]) -> list[Samples]:
    """Return the first and the last sample of each prompt, with the names of the runs."""
    found: dict[str, list[Row]] = {}
    for name, record in runs:
        for prompt, samples in samples_by_prompt(record).items():
            shown = [samples[position] for position in sorted({0, len(samples) - 1})]
            found.setdefault(prompt, []).extend((_sample_label(name, one.step, record), one.text) for one in shown)
    return [Samples(prompt, texts) for prompt, texts in found.items()]


def _answers(record: RunRecord) -> list[Samples]:
    """Return the answers to held-out questions before and after; none of a record that is on the hub."""
    if len(record.answers) < 2:
        return []
    before, after = record.answers[0], record.answers[-1]

    def row(answers: StepAnswers, one: Answer) -> Row:
        label = _sample_label("", answers.step, record)
        return (answer_label(label, one.correct) if after.counted else label), one.answer

    both = zip(before.answers, after.answers, strict=True)
    return [
        Samples(one.question, [row(before, one), row(after, other)], one.expected)
        for one, other in both
        if one.question
    ]


def _all_answers(record: RunRecord) -> Folded:
    """Return every answer; empty if all are shown."""
    parts = _answers(record)
    return Folded(_("all {count:,} answers", count=len(parts)), parts if len(parts) > _SHOWN else [])


def _all_samples(record: RunRecord) -> Folded:
    """Return every sample; empty if all are shown."""
    prompts = samples_by_prompt(record)
    parts = [
        Samples(prompt, [(_sample_label("", one.step, record), one.text) for one in samples])
        for prompt, samples in prompts.items()
    ]
    shown = len(parts) <= _SHOWN and all(len(part.texts) <= 2 for part in parts)
    message = _("all {count:,} samples", count=len(record.samples))
    return Folded(message, [] if shown else parts)


def _sample_label(name: str, step: int, record: RunRecord) -> str:
    last = record.training.steps if record.status == "finished" and record.training is not None else None
    when = _("step {step}")
    if step == 0:
        when = _("base model")
    elif record.rounds:
        when = _("round {step}")
        if record.strength < 1:
            when += f" × {record.strength:g}"
    elif step == last:
        when = _("step {step}, the end")
    elif last is not None and step == record.kept_step:
        when = _("step {step}, kept")
    return f"{name} · {when.format(step=step)}" if name else when.format(step=step)


def decision_table(record: RunRecord) -> Table:
    """Return a row for each decision of a finished run: what, the result, and from what it was taken."""
    rows = [*_rate(record), *_head(record)]
    if record.status == "finished" and record.training is not None:
        rows += _steps(record, record.training.steps)
    return Table([_("decision"), _("result"), _("from what")], rows)


def _rate(record: RunRecord) -> list[list[str]]:
    if "learning_rate" not in record.resolved_settings:
        return []
    source = _("width and weights of the base, method, steps")
    for restart in record.restarts:
        source = _(
            "a third of {rate:g}, at which the training loss had risen until step {step:,}",
            step=restart.step,
            rate=restart.learning_rate,
        )
    return [[_("learning rate"), f"{record.resolved_settings['learning_rate']:g}", source]]


def _head(record: RunRecord) -> list[list[str]]:
    factor = record.resolved_settings.get("head_factor")
    if factor is None:
        return []
    result = _("trains, at {factor:g} of the rate", factor=factor)
    return [[_("output head"), result, _("the base's predictions on 8 rows, size of the vocabulary")]]


def _steps(record: RunRecord, steps: int) -> list[list[str]]:
    done = [look for look in looks(record) if look.whole.step]
    if not done and record.strength < 1:
        return [[_("strength"), f"{record.strength:g}", _("one text, whose end is no other text")]]
    if not done or record.pair_validations:
        return []
    text = _(
        "{looks} looks at {windows} of {documents}",
        looks=len(done),
        windows=counts.windows(done[-1].whole.windows),
        documents=counts.documents(len(done[-1].whole.independent)),
    )
    planned = record.resolved_settings.get("steps", steps)
    rows = []
    if steps != planned:
        rows.append([_("end of the run"), _("step {done:,} of {planned:,}", done=steps, planned=planned), text])
    rows.append([_("kept step"), f"{record.kept_step:,}" if record.kept_step is not None else "–", text])
    best = min(done, key=lambda look: look.loss)
    if best.half is not None:
        losses = record.strength_losses or {strength: result.loss for strength, result in best.results.items()}
        measured = "  ".join(f"{strength:g}: {format_number(losses[strength])}" for strength in sorted(losses))
        rows.append([_("strength"), f"{record.strength:g}", _("validation loss by strength") + "\n" + measured])
    return rows
