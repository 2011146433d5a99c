"""Samples of a run side by side: before the first step, in the middle, and at the end."""

from collections.abc import Sequence

from markupsafe import Markup

from tsugiki.language import _
from tsugiki.report.page import render_macro
from tsugiki.train.record import RunRecord, Sample, samples_by_prompt


def sample_columns(runs: Sequence[tuple[str, RunRecord]]) -> Markup:
    """Render, for each prompt, a row of samples for each run; an empty name of a run is not shown."""
    shown = [_by_prompt(shown_samples(record, name)) for name, record in runs]
    prompts = dict.fromkeys(prompt for cells in shown for prompt in cells)
    rows = [(prompt, [cells.get(prompt, []) for cells in shown]) for prompt in prompts]
    return render_macro("samples", rows)


def shown_samples(record: RunRecord, name: str = "") -> list[tuple[str, str, str]]:
    """Return (label, prompt, text) for the first, the middle and the last sample of each prompt."""
    cells = []
    for prompt, samples in samples_by_prompt(record).items():
        for position in sorted({0, len(samples) // 2, len(samples) - 1}):
            cells.append((_label(name, samples[position], record), prompt, samples[position].text))
    return cells


def _by_prompt(cells: Sequence[tuple[str, str, str]]) -> dict[str, list[tuple[str, str, str]]]:
    found: dict[str, list[tuple[str, str, str]]] = {}
    for cell in cells:
        found.setdefault(cell[1], []).append(cell)
    return found


def all_samples(record: RunRecord) -> Markup:
    """Render every sample in a folded section; empty if each prompt has at most three samples."""
    if len(record.samples) <= 3 * len({sample.prompt for sample in record.samples}):
        return Markup()
    cells = [(_label("", sample, record), sample.prompt, sample.text) for sample in record.samples]
    return render_macro(
        "folded", _("all {count:,} samples").format(count=len(cells)), render_macro("sample_row", cells)
    )


def _label(name: str, sample: Sample, record: RunRecord) -> str:
    at_end = record.status == "finished" and record.training is not None and sample.step == record.training.steps
    if sample.step == 0:
        when = _("before the first step")
    else:
        when = (_("step {step}, the end") if at_end else _("step {step}")).format(step=sample.step)
    return f"{name} · {when}" if name else when
