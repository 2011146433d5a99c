"""What the model wrote, side by side: at the start, in the middle, and at the end."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from tsugiki.report.page import part
from tsugiki.train.record import RunRecord


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
    prompts = {sample.get("prompt", "") for sample in record.samples}
    if len(record.samples) <= 3 * len(prompts):
        return Markup()
    cells = [(_label("", one, record), one.get("prompt", ""), one.get("text", "")) for one in record.samples]
    return part("folded", f"all {len(cells):,} samples", part("sample_row", cells))


def _prompts(record: RunRecord) -> list[str]:
    return list(dict.fromkeys(str(sample.get("prompt", "")) for sample in record.samples))


def _of_prompt(record: RunRecord, prompt: str, name: str) -> list[tuple[str, str, str]]:
    written = [sample for sample in record.samples if str(sample.get("prompt", "")) == prompt]
    return [(_label(name, one, record), prompt, str(one.get("text", ""))) for one in _three(written)]


def _three(samples: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The first, the middle one, and the last; fewer where there are fewer."""
    places = sorted({0, len(samples) // 2, len(samples) - 1})
    return [samples[place] for place in places]


def _label(name: str, sample: Mapping[str, Any], record: RunRecord) -> str:
    step = sample.get("step")
    ended = record.status == "finished" and step == record.training.get("steps")
    when = "before the first step" if step == 0 else f"step {step}" + (", the end" if ended else "")
    return f"{name} · {when}" if name else when
