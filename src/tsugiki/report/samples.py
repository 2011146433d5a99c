"""Samples of a run side by side: of the base, in the middle of the run, and at its end.

Where the text of an adapter differs from the base's only in old forms of characters, the size of kana or quotation
marks, these characters are marked.
"""

from collections.abc import Sequence
from difflib import SequenceMatcher
from itertools import groupby

from markupsafe import Markup

from tsugiki.data.duplicates import NEW_FORMS
from tsugiki.language import _
from tsugiki.report.page import render_macro
from tsugiki.training.record import RunRecord, Sample, samples_by_prompt

_SAME = str.maketrans(
    {
        **NEW_FORMS,
        **dict(
            zip("ぁぃぅぇぉっゃゅょゎァィゥェォッャュョヮ", "あいうえおつやゆよわアイウエオツヤユヨワ", strict=True)
        ),
        **dict.fromkeys("『“‘〝〈《", "「"),
        **dict.fromkeys("』”’〟〉》", "」"),
        "'": '"',
    }
)
"""Character -> character that represents all those which differ from it only in orthography, or only as quotation
marks."""
_SHORTEST = 4  # characters; in shorter passages two texts agree by chance
_LONGEST = 2000  # characters of texts that are compared; the time grows with the square


def sample_columns(runs: Sequence[tuple[str, RunRecord]]) -> Markup:
    """Render, for each prompt, a row of samples for each run; an empty name of a run is not shown."""
    shown = [_by_prompt(shown_samples(record, name)) for name, record in runs]
    prompts = dict.fromkeys(prompt for cells in shown for prompt in cells)
    rows = [(prompt, [_marked_cells(cells.get(prompt, [])) for cells in shown]) for prompt in prompts]
    is_marked = any(
        isinstance(text, Markup) for _prompt, of_runs in rows for cells in of_runs for *_cell, text in cells
    )
    note = _("Marked: the base model wrote the same, with other forms of these characters or other quotation marks.")
    return render_macro("samples", rows) + (render_macro("paragraph", note) if is_marked else Markup())


def differences_in_form(base: str, text: str) -> list[tuple[str, str]]:
    """Split a text into (part, the base's text in its place, if the two differ only in form, otherwise "").

    Forms are old and new characters, small and large kana, and kinds of quotation marks.
    """
    instead = [""] * len(text)
    if base != text and max(len(base), len(text)) <= _LONGEST:
        matcher = SequenceMatcher(None, base.translate(_SAME), text.translate(_SAME), autojunk=False)
        for in_base, here, length in matcher.get_matching_blocks():
            if length >= _SHORTEST:
                pairs = zip(base[in_base : in_base + length], text[here : here + length], strict=True)
                instead[here : here + length] = [other if other != own else "" for other, own in pairs]
    groups = [list(pairs) for _differs, pairs in groupby(zip(text, instead, strict=True), lambda pair: bool(pair[1]))]
    return [("".join(own for own, _other in pairs), "".join(other for _own, other in pairs)) for pairs in groups]


def _marked_cells(cells: Sequence[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """Return the cells of a prompt; the texts after the first one, that of the base, are marked where they differ."""
    marked = list(cells[:1])
    for label, prompt, text in cells[1:]:
        parts = differences_in_form(cells[0][2], text)
        differs = any(instead for _text, instead in parts)
        marked.append((label, prompt, render_macro("marked", parts) if differs else text))
    return marked


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
