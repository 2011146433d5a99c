"""Lines of plots: the losses and the bits per character of a run, by step."""

from collections.abc import Sequence
from dataclasses import replace

from tsugiki.language import _
from tsugiki.report.formatting import FEW_DOCUMENTS
from tsugiki.report.plots import Series, smoothed
from tsugiki.training.evaluation.interval import Interval
from tsugiki.training.evaluation.result import StepEvaluation
from tsugiki.training.record import RunRecord

_SECTIONS = 12  # a loss curve is smoothed over 1 / _SECTIONS of its points
_TRAINING, _HELD_OUT, _VALIDATION = 0, 1, 2  # colours


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


def bits_series(record: RunRecord) -> list[Series]:
    """Return lines for the bits per character of the held-out and of the validation text, with intervals."""
    lines = [held_out_series(record, _("held-out"))]
    if lines[0].band:
        lines = [replace(lines[0], name=_("held-out, 95 % interval over documents"))]
    return [*lines, *([_bits_by_step(record.validations, _("validation"), _VALIDATION)] if record.validations else [])]


def _bits_by_step(entries: Sequence[StepEvaluation], name: str, colour: int) -> Series:
    return _by_step(entries, name, [(entry.bits_per_char, entry.bits_per_char_interval) for entry in entries], colour)


def _by_step(
    entries: Sequence[StepEvaluation], name: str, figures: list[tuple[float, Interval | None]], colour: int
) -> Series:
    """Return a line with a point for each evaluation, and a band if the intervals are narrow enough to see the line."""
    points = [(float(entry.step), figure) for entry, (figure, _) in zip(entries, figures, strict=True)]
    many = all(len(entry.independent) >= FEW_DOCUMENTS for entry in entries)
    band = [interval for _, interval in figures if interval is not None]
    return Series(name, points, band if many and len(band) == len(points) else [], colour)
