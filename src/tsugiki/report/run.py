"""`report.html` of a run: what it showed, and everything that it was."""

import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from tsugiki.io.atomic import write_text
from tsugiki.io.formatting import format_duration, format_gigabytes
from tsugiki.report.counts import alike_lines, data_lines
from tsugiki.report.formatting import (
    Table,
    change,
    describe_interval,
    figure,
    fill_template,
    interval_of_change,
    number,
    with_interval,
)
from tsugiki.report.page import Section, page, pairs, part, table
from tsugiki.report.plots import Series, curves, smoothed
from tsugiki.report.samples import all_samples, sample_columns
from tsugiki.train.record import RunRecord, read_record

REPORT_FILE = "report.html"
_SMOOTHED = 12  # stretches of a loss curve that are told apart
_TRAINING, _HELD_OUT = 0, 1  # colours


def write_report(folder: Path) -> Path:
    """Write `report.html` from the `run.json` beside it, of a run that is finished, going on, or was stopped.

    Args:
        folder: the run's.

    Returns:
        Where the page is.

    Raises:
        TsugikiError: there is no run, or the page cannot be written; one that was there is still there.
    """
    path = folder / REPORT_FILE
    write_text(path, report_page(read_record(folder), folder))
    return path


def report_page(record: RunRecord, folder: Path) -> str:
    """The page of a run as HTML; what the record does not hold is left out.

    Args:
        record: of the run.
        folder: where it is, for the title and the commands.
    """
    use = _use(record, folder)
    return page(
        f"Run · {folder.resolve().name}",
        summary_sentence(record),
        record_sections(record) + ([Section("How to use it", use)] if use else []),
        _notes(record),
    )


def record_sections(record: RunRecord) -> list[Section]:
    """All that the record says, as parts of a page; what it does not hold is left out."""
    sections = [
        ("Held-out text and loss", _figures(record)),
        ("Samples", sample_columns([("", record)]) + all_samples(record)),
        ("Measured", _evaluations(record)),
        ("Data", _data(record)),
        ("What trained", _parameters(record)),
        ("Settings", _settings(record)),
        ("Machine", _machine(record)),
    ]
    return [Section(heading, body) for heading, body in sections if body]


def held_out_table(record: RunRecord) -> Table:
    """Held-out figures before and after, with 95 % intervals; no rows where there are none."""
    rows = []
    if len(record.evaluations) > 1:
        before, after = record.evaluations[0], record.evaluations[-1]
        for name, label in (("loss", "loss"), ("perplexity", "perplexity"), ("bits_per_char", "bits per character")):
            changed = change(before, after, name)
            shown = "–" if math.isnan(changed) else f"{changed:+.1%}"
            rows.append([label, with_interval(before, name), with_interval(after, name), shown])
    return ["held-out text", "before", "after", "change"], rows


def describe_change(record: RunRecord) -> str:
    """How sure the change of the held-out figures is."""
    before, after = record.evaluations[0], record.evaluations[-1]
    return describe_interval(interval_of_change(before, after), len(after.get("documents") or ()))


def summary_sentence(record: RunRecord) -> str:
    """What became of the held-out figures."""
    if not record.evaluations:
        return "Nothing was measured yet."
    before, after = record.evaluations[0], record.evaluations[-1]
    took = f"{figure(after.get('bits_per_char'))} bits a character (loss {figure(after.get('loss'))})"
    if len(record.evaluations) == 1:
        return f"At step {after.get('step')} the held-out text takes {took}; nothing was measured after that yet."
    changed = change(before, after, "bits_per_char")
    if math.isnan(changed):
        return f"At step {after.get('step')} the held-out text takes {took}; how that changed cannot be told."
    return (
        f"After {number(after.get('step')):,.0f} steps the held-out text takes {took} instead of "
        f"{figure(before.get('bits_per_char'))} (loss {figure(before.get('loss'))}): {changed:+.1%} "
        f"({describe_change(record)})."
    )


def loss_series(record: RunRecord) -> list[Series]:
    """Training loss as it was and smoothed, and the held-out loss, all in nats a token by step."""
    points = [(number(entry.get("step")), number(entry.get("loss"))) for entry in record.loss_curve]
    window = max(1, len(points) // _SMOOTHED) | 1
    if window == 1:
        training = [Series("training", points, colour=_TRAINING)] if points else []
    else:
        training = [
            Series("training", points, colour=_TRAINING, faint=True),
            Series(f"training, mean of {window}", smoothed(points, window), colour=_TRAINING),
        ]
    return [*training, *_measured(record, "loss", "held-out")]


def held_out_series(record: RunRecord, name: str, colour: int = _HELD_OUT) -> Series:
    """Bits per character of the held-out text by step, with their intervals."""
    found = _measured(record, "bits_per_char", name, colour)
    return found[0] if found else Series(name, [], colour=colour)


def _measured(record: RunRecord, figure_name: str, name: str, colour: int = _HELD_OUT) -> list[Series]:
    points = [(number(entry.get("step")), number(entry.get(figure_name))) for entry in record.evaluations]
    bands = [entry.get(f"{figure_name}_interval") for entry in record.evaluations]
    edges = [(number(band[0]), number(band[1])) for band in bands if band]
    edges = edges if len(edges) == len(points) else []  # one held-out document has no interval
    return [Series(name, points, edges, colour=colour)] if points else []


def _notes(record: RunRecord) -> list[str]:
    notes = []
    if record.status != "finished":
        done, planned = record.training.get("steps") or 0, record.resolved_settings.get("steps")
        of = f" of {planned:,}" if planned else ""
        notes.append(
            f"Not finished: step {done:,}{of}. If it was stopped, the same command with --resume goes on with it; "
            "`tsugiki report` writes this page anew."
        )
    last: Mapping[str, Any] = record.evaluations[-1] if record.evaluations else {}
    if last.get("caveat"):
        notes.append(str(last["caveat"]))
    if last.get("left_out"):
        notes.append(f"{last['left_out']:,} held-out examples are longer than the model's context and are not scored.")
    return notes


def _figures(record: RunRecord) -> Markup:
    rates = [(number(entry.get("step")), number(entry.get("learning_rate"))) for entry in record.loss_curve]
    drawn = [
        curves(loss_series(record), "Loss by step, nats a token", below=Series("learning rate", rates)),
        curves([held_out_series(record, "held-out, 95 % interval over documents")], "Bits a character by step"),
    ]
    facts = [("bits a character", _from_to(record))] if len(record.evaluations) > 1 else []
    training = _with_time(record)
    facts += fill_template(
        (
            ("parameters trained", "{trainable:,}"),
            ("time in steps", "{time}"),
            ("speed", "{tokens_per_second:,.0f} tokens/s"),
        ),
        {**training, **record.parameters},
    )
    if record.training.get("peak_memory"):
        facts.append(("peak memory", _gigabytes(record.training["peak_memory"])))
    return part("facts", facts) + part("figures", [one for one in drawn if one])


def _from_to(record: RunRecord) -> str:
    first, last = (figure(record.evaluations[place].get("bits_per_char")) for place in (0, -1))
    return f"{first} → {last}"


def _evaluations(record: RunRecord) -> Markup:
    if not record.evaluations:
        return Markup()
    first = record.evaluations[0]
    rows = [
        (
            str(entry.get("step")),
            with_interval(entry, "loss"),
            figure(entry.get("perplexity")),
            with_interval(entry, "bits_per_char"),
            "–" if entry is first else _change(first, entry),
        )
        for entry in record.evaluations
    ]
    counts = fill_template(
        (("", "{characters:,} characters in {tokens:,} tokens and {windows:,} windows. "),), record.evaluations[-1]
    )
    explained = (
        "".join(text for _, text in counts)
        + "In brackets 95 % intervals, of documents drawn anew. Between models with different tokenizers, compare bits."
    )
    headers = ("step", "loss, nats a token", "perplexity", "bits a character", "change of bits")
    return table(headers, rows) + Markup("<p>{}</p>").format(explained)


def _change(first: Mapping[str, Any], entry: Mapping[str, Any]) -> str:
    changed, interval = change(first, entry, "bits_per_char"), interval_of_change(first, entry)
    if math.isnan(changed):
        return "–"
    return f"{changed:+.1%}" + (f"\n[{interval[0]:+.1%}, {interval[1]:+.1%}]" if interval else "")


def _data(record: RunRecord) -> Markup:
    counts = record.data
    lines = [("read from", str(record.config["data"]))] if "data" in record.config else []
    lines += data_lines(counts)
    lines += fill_template((("measured", "{held_out[measured_characters]:,} held-out characters"),), counts)
    lines += alike_lines(counts)
    prints = (
        ("learned texts", "{train[fingerprint]}"),
        ("held-out texts", "{held_out[fingerprint]}"),
        ("rows", "{blocks_fingerprint}"),
    )
    found = fill_template(prints, counts)
    folded = part("folded", "fingerprints", pairs(found)) if found else Markup()
    return pairs(lines) + folded if lines else Markup()


def _parameters(record: RunRecord) -> Markup:
    lines = fill_template(
        (
            ("base", "{base[name]}"),
            ("its weights", "{base[dtype]}, {base[fingerprint]}"),
            ("method", "{config[method]}"),
            ("trained", "{parameters[trainable]:,} of {parameters[total]:,} parameters, {parameters[share]:.2%}"),
        ),
        {"base": record.base, "config": record.config, "parameters": record.parameters},
    )
    lines += [(name.replace("_", " "), _plain(choice)) for name, choice in record.resolved_settings.items()]
    return pairs(lines) if lines else Markup()


def _settings(record: RunRecord) -> Markup:
    length = () if record.config.get("max_steps") else (("epochs", "{epochs:g}"),)  # steps win, and are told above
    lines = fill_template(
        (
            ("adapter", "r {lora[r]}, alpha {lora[lora_alpha]:g}, dropout {lora[lora_dropout]:g}"),
            ("learning rate", "{learning_rate:g}, {lr_scheduler_type}"),
            ("a step", "{grad_accum} × {batch_size} rows"),
            *length,
            ("seed", "{seed}"),
        ),
        record.config,
    )
    everything = yaml.safe_dump(record.config, allow_unicode=True, sort_keys=False).strip()
    return (pairs(lines) if lines else Markup()) + part("folded", "all of them", part("code", everything))


def _machine(record: RunRecord) -> Markup:
    lines = [(name, _plain(value)) for name, value in record.machine.items() if value is not None]
    training = _with_time(record)
    lines += fill_template(
        (
            ("steps", "{steps:,}"),
            ("learned", "{tokens:,} tokens in {seconds:,.0f} s ({time}) of steps, {tokens_per_second:,.0f} tokens/s"),
        ),
        training,
    )
    if record.training.get("peak_memory"):
        lines.append(("peak memory", _gigabytes(record.training["peak_memory"])))
    lines.append(("versions", ", ".join(f"{name} {version}" for name, version in record.versions.items())))
    return pairs(lines)


def _use(record: RunRecord, folder: Path) -> Markup:
    """Commands for what the folder holds; nothing before it holds something."""
    if record.status != "finished":
        return Markup()
    here, prompt = shlex.quote(str(folder)), shlex.quote((record.config.get("prompts") or ["…"])[0])
    if record.config.get("method") in ("full", "pretrain"):
        commands = (
            f"tsugiki generate --model {here} --prompt {prompt}\n"
            f"tsugiki eval --model {here} --data other.txt\n"
            f"tsugiki train --model {here} --data other.txt --out another"
        )
        python = (
            f"from transformers import AutoModelForCausalLM\n\nAutoModelForCausalLM.from_pretrained({str(folder)!r})"
        )
    else:
        base = shlex.quote(str(record.base.get("name", record.config.get("model", "BASE"))))
        commands = (
            f"tsugiki generate --model {base} --adapter {here} --prompt {prompt}\n"
            f"tsugiki eval --adapter {here} --data other.txt\n"
            f"tsugiki merge --model {base} --adapter {here} --out merged"
        )
        python = (
            "from tsugiki import load_adapter\nfrom tsugiki.base.loading import load_model\n\n"
            f"model = load_model({str(record.base.get('name', 'BASE'))!r})\n"
            f"load_adapter(model, {str(folder)!r})"
        )
    return part("code", commands) + part("code", python)


def _with_time(record: RunRecord) -> dict[str, Any]:
    """What training cost, and its seconds in words as `time`."""
    seconds = number(record.training.get("seconds"))
    return record.training if math.isnan(seconds) else {**record.training, "time": format_duration(seconds)}


def _plain(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _gigabytes(size: float) -> str:
    return format_gigabytes(size)
