"""Samples of a run side by side: before the first step, in the middle, and at the end."""

from collections.abc import Sequence

from markupsafe import Markup

from tsugiki.report.page import render_macro
from tsugiki.train.record import RunRecord, Sample


def sample_columns(runs: Sequence[tuple[str, RunRecord]]) -> Markup:
    """Render, for each prompt, a row of samples for each run.

    Args:
        runs: names and records of the runs; an empty name is not shown.
    """
    rendered = Markup()
    for prompt in dict.fromkeys(prompt for _, record in runs for prompt in _prompts(record)):
        rendered += render_macro("prompt_heading", prompt)
        for name, record in runs:
            if prompt in _prompts(record):
                rendered += render_macro("sample_row", _of_prompt(record, prompt, name))
    return rendered


def shown_samples(record: RunRecord) -> list[tuple[str, str, str]]:
    """Return (step, prompt, text) for the first, the middle and the last sample of each prompt."""
    return [cell for prompt in _prompts(record) for cell in _of_prompt(record, prompt, "")]


def all_samples(record: RunRecord) -> Markup:
    """Render every sample in a folded section; empty if each prompt has at most three samples."""
    prompts = {sample.prompt for sample in record.samples}
    if len(record.samples) <= 3 * len(prompts):
        return Markup()
    cells = [(_label("", sample, record), sample.prompt, sample.text) for sample in record.samples]
    return render_macro("folded", f"all {len(cells):,} samples", render_macro("sample_row", cells))


def _prompts(record: RunRecord) -> list[str]:
    return list(dict.fromkeys(sample.prompt for sample in record.samples))


def _of_prompt(record: RunRecord, prompt: str, name: str) -> list[tuple[str, str, str]]:
    samples = [sample for sample in record.samples if sample.prompt == prompt]
    return [(_label(name, sample, record), prompt, sample.text) for sample in _three(samples)]


def _three(samples: Sequence[Sample]) -> list[Sample]:
    """Return the first, the middle and the last sample, without repetition."""
    positions = sorted({0, len(samples) // 2, len(samples) - 1})
    return [samples[position] for position in positions]


def _label(name: str, sample: Sample, record: RunRecord) -> str:
    at_end = record.status == "finished" and record.training is not None and sample.step == record.training.steps
    when = "before the first step" if sample.step == 0 else f"step {sample.step}" + (", the end" if at_end else "")
    return f"{name} · {when}" if name else when
