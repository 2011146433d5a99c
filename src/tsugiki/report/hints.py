"""Hints from the figures of a run, one sentence each: what is wrong, and what to do."""

import math
from collections.abc import Sequence

from tsugiki.language import _, counts
from tsugiki.report.formatting import FEW_DOCUMENTS
from tsugiki.training.evaluation.result import StepEvaluation, change_of_bits
from tsugiki.training.record import RunRecord
from tsugiki.training.tokenizer_coverage import LITTLE_TEXT, Coverage

_FEW_STEPS = 20
_RISE = 0.02  # of the loss above its lowest value, relative
_STILL_FALLING = 0.2  # share of the whole gain that came after the last evaluation but one
_NO_CHANGE = 0.002  # relative


def hints(record: RunRecord) -> list[str]:
    """Return hints for the user from the record of a run; empty for a run that has just begun."""
    found = [_text_hints, _loss_hints, _result_hints, _interval_hints, _sample_hints]
    return [hint for hints_of in found for hint in hints_of(record)]


def _text_hints(record: RunRecord) -> list[str]:
    data, notes = record.data, []
    if data is None:
        return []
    if data.train.characters < LITTLE_TEXT:
        notes.append(
            _(
                "The training text is short ({characters}): it is soon learned by heart. More text helps most; "
                "--epochs 1 and a small --r keep the adapter closer to the base."
            ).format(characters=counts.characters(data.train.characters))
        )
    notes += [note[:1].upper() + note[1:] for note in Coverage(data.unknown_share, data.piece_share).notes()]
    if data.held_out.known_to_base:
        notes.append(
            _(
                "The base has learned {known:,} of the {all:,} held-out documents, or nearly the same texts, in its "
                "pretraining: the figures are better than on new text."
            ).format(known=data.held_out.known_to_base, all=data.held_out.documents)
        )
    return notes


def _loss_hints(record: RunRecord) -> list[str]:
    """Return a hint if the loss rose towards the end, or was still falling, or if there were few steps."""
    training, planned = record.training, record.resolved_settings.get("steps")
    points = record.validations if len(record.validations) > 1 else record.evaluations
    if training is None or record.status != "finished" or len(points) < 3:
        return _few_steps(record)
    lowest = min(points[1:], key=lambda point: point.loss)
    last, before = points[-1], points[-2]
    if last.loss > lowest.loss * (1 + _RISE):
        return [
            _(
                "After step {step:,}, the loss on text that was not trained on rose by {rise:.1%}: the run learned its "
                "text by heart. Fewer --epochs or a lower --learning-rate avoid it; more text helps most."
            ).format(step=lowest.step, rise=last.loss / lowest.loss - 1)
        ]
    gained = points[0].loss - last.loss
    if (
        last is lowest
        and training.steps == planned
        and gained > 0
        and before.loss - last.loss > _STILL_FALLING * gained
    ):
        return [
            _(
                "The loss on text that was not trained on was still falling at the last step: more --epochs, or a "
                "higher --learning-rate, may give more."
            )
        ]
    return _few_steps(record)


def _few_steps(record: RunRecord) -> list[str]:
    if record.training is None or record.status != "finished" or record.training.steps >= _FEW_STEPS:
        return []
    return [
        _("The run had only {steps}: more --epochs or a smaller --batch-size give more of them.").format(
            steps=counts.steps(record.training.steps)
        )
    ]


def _result_hints(record: RunRecord) -> list[str]:
    """Return a hint if the result hardly differs from the base, or is worse."""
    evaluations: Sequence[StepEvaluation] = record.evaluations
    if record.status != "finished" or len(evaluations) < 2 or record.kept_step == 0 or not record.any_step_is_better():
        return []
    change = change_of_bits(evaluations[0], evaluations[-1])
    if math.isnan(change.relative):
        return []
    if abs(change.relative) < _NO_CHANGE:
        return [
            _(
                "The result hardly differs from the base ({change:+.2%}): a higher --learning-rate or more --epochs "
                "change more."
            ).format(change=change.relative)
        ]
    if change.relative > 0:
        return [
            _(
                "On the held-out text the result is worse than the base ({change:+.1%}): a lower --learning-rate or "
                "fewer --epochs may help, and so does more text."
            ).format(change=change.relative)
        ]
    return []


def _interval_hints(record: RunRecord) -> list[str]:
    """Return a hint if few documents are held out, so that the interval is wide."""
    documents = len(record.evaluations[-1].independent) if record.evaluations else FEW_DOCUMENTS
    if record.status != "finished" or documents >= FEW_DOCUMENTS:
        return []
    return [
        _(
            "Few texts are held out ({documents}; near-duplicates count as one): more works, or a larger --held-out, "
            "narrow the interval or make one possible."
        ).format(documents=counts.documents(documents))
    ]


def _sample_hints(record: RunRecord) -> list[str]:
    if not record.samples:
        return []
    last = [sample for sample in record.samples if sample.step == record.samples[-1].step]
    empty = sum(not sample.text.strip() for sample in last)
    if not empty:
        return []
    return [
        _(
            "For {empty:,} of {all:,} prompts the model wrote nothing: it ended the text at once. A chat model must be "
            "given a turn of a conversation, and plain text a beginning that goes on."
        ).format(empty=empty, all=len(last))
    ]
