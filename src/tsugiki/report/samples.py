"""What the model wrote, side by side: at the start, in the middle, and at the end."""

from collections.abc import Sequence

from markupsafe import Markup

from tsugiki.report.page import part
from tsugiki.train.record import RunRecord, Sample


def sample_columns(runs: Sequence[tuple[str, RunRecord]]) -> Markup:
    """For each prompt a row of samples for each run; nothing where nothing was written.

    Args:
        runs: their names, and their records. A name of nothing is not shown.
    """
    shown = Markup()
    for prompt in dict.fromkeys(prompt for _, record in runs for prompt in _prompts(record)):
        shown += part("prompt_heading", prompt)
        for name, record in runs:
            if prompt in _prompts(record):
                shown += part("sample_row", _of_prompt(record, prompt, name))
    return shown


def shown_samples(record: RunRecord) -> list[tuple[str, str, str]]:
    """The same of one run, prompt by prompt: when it was written, the prompt, and the text."""
    return [cell for prompt in _prompts(record) for cell in _of_prompt(record, prompt, "")]


def all_samples(record: RunRecord) -> Markup:
    """Every sample, folded; nothing where the three of each prompt are all."""
    prompts = {sample.prompt for sample in record.samples}
    if len(record.samples) <= 3 * len(prompts):
        return Markup()
    cells = [(_label("", sample, record), sample.prompt, sample.text) for sample in record.samples]
    return part("folded", f"all {len(cells):,} samples", part("sample_row", cells))


def _prompts(record: RunRecord) -> list[str]:
    return list(dict.fromkeys(sample.prompt for sample in record.samples))


def _of_prompt(record: RunRecord, prompt: str, name: str) -> list[tuple[str, str, str]]:
    samples = [sample for sample in record.samples if sample.prompt == prompt]
    return [(_label(name, sample, record), prompt, sample.text) for sample in _three(samples)]


def _three(samples: Sequence[Sample]) -> list[Sample]:
    """The first, the middle one, and the last; fewer where there are fewer."""
    places = sorted({0, len(samples) // 2, len(samples) - 1})
    return [samples[place] for place in places]


def _label(name: str, sample: Sample, record: RunRecord) -> str:
    at_end = record.status == "finished" and record.training is not None and sample.step == record.training.steps
    when = "before the first step" if sample.step == 0 else f"step {sample.step}" + (", the end" if at_end else "")
    return f"{name} · {when}" if name else when
