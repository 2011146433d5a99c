"""What a run decided, and from how much text, as a table (`training.choose.decisions` has the rules)."""

from tsugiki.language import _, counts
from tsugiki.report.formatting import format_number
from tsugiki.report.table import Table
from tsugiki.training.choose.decisions import looks
from tsugiki.training.record.run_record import RunRecord


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
        message = _("a third of {rate:g}, at which the training loss had risen until step {step:,}")
        source = message.format(step=restart.step, rate=restart.learning_rate)
    return [[_("learning rate"), f"{record.resolved_settings['learning_rate']:g}", source]]


def _head(record: RunRecord) -> list[list[str]]:
    factor = record.resolved_settings.get("head_factor")
    if factor is None:
        return []
    result = _("trains, at {factor:g} of the rate").format(factor=factor)
    return [[_("output head"), result, _("the base's predictions on 8 rows, size of the vocabulary")]]


def _steps(record: RunRecord, steps: int) -> list[list[str]]:
    done = [look for look in looks(record) if look.whole.step]
    if not done and record.strength < 1:
        return [[_("strength"), f"{record.strength:g}", _("one text, whose end is no other text")]]
    if not done or record.pair_validations:
        return []
    text = _("{looks} looks at {windows} of {documents}").format(
        looks=len(done),
        windows=counts.windows(done[-1].whole.windows),
        documents=counts.documents(len(done[-1].whole.independent)),
    )
    planned = record.resolved_settings.get("steps", steps)
    rows = [
        [_("end of the run"), _("step {done:,} of {planned:,}").format(done=steps, planned=planned), text],
        [_("kept step"), f"{record.kept_step:,}" if record.kept_step is not None else "–", text],
    ]
    best = min(done, key=lambda look: look.loss)
    if best.half is not None:
        losses = record.strength_losses or {strength: result.loss for strength, result in best.results.items()}
        measured = "  ".join(f"{strength:g}: {format_number(losses[strength])}" for strength in sorted(losses))
        rows.append([_("strength"), f"{record.strength:g}", _("validation loss by strength") + "\n" + measured])
    return rows
