"""How often runs, models and adapters are right about pairs of answers: tables, lines of plots, and sentences."""

from collections.abc import Sequence

from tsugiki.language import _, counts
from tsugiki.preference.losses import LOSSES
from tsugiki.report.sections import Curves, Note, Sentence, Series
from tsugiki.report.table import Table
from tsugiki.training.record.interval import Interval, paired_interval
from tsugiki.training.record.result import PairScores, TwoScores
from tsugiki.training.record.run_record import RunRecord

_CHOSEN, _REJECTED, _HELD_OUT = 0, 1, 2  # colours


def accuracy_text(scores: PairScores) -> str:
    """Return the share of the pairs that are right, with its interval."""
    low, high = scores.accuracy_interval
    return f"{scores.accuracy:.1%}\n[{low:.1%}, {high:.1%}]"


def pair_table(record: RunRecord) -> Table:
    """Return the figures of the held-out pairs before and after a run; no rows for a run that learned texts."""
    headers = [_("held-out pairs"), _("before"), _("after")]
    if len(record.pair_evaluations) < 2:
        return Table(headers, [])
    both = record.pair_evaluations[0], record.pair_evaluations[-1]
    loss = LOSSES.get(record.config.preference or "")
    label = _("accuracy, against the start") if loss is None or loss.needs_reference else _("accuracy per token")
    rows = [[label, *map(accuracy_text, both)]]
    if both[1].likelier is not None:
        rows.append([_("chosen answer is the likelier one"), *(f"{one.likelier:.1%}" for one in both)])
    if both[1].matched:
        label = _("at the same length ({pairs})", pairs=counts.pairs(both[1].matched))
        rows.append([label, *(f"{one.matched_accuracy:.1%}" for one in both)])
    rows += [
        [_("margin"), *(f"{one.margin:.3f}" for one in both)],
        [_("log-probability of a chosen answer"), *(f"{one.chosen:.2f}" for one in both)],
        [_("log-probability of a rejected answer"), *(f"{one.rejected:.2f}" for one in both)],
    ]
    return Table(headers, rows)


def pair_notes(record: RunRecord) -> list[Sentence]:
    """Return sentences about the pairs of a run: their lengths, and what the accuracy is worth."""
    if len(record.pair_evaluations) < 2:
        return []
    start, last = record.pair_evaluations[0], record.pair_evaluations[-1]
    notes = [Sentence(_lengths(last))]
    if last.longer_is_chosen is not None and last.accuracy <= max(last.longer_is_chosen, 1 - last.longer_is_chosen):
        message = _("The accuracy is not above that of a choice by length alone, so the run may have learned no more.")
        notes.append(Note(message))
    if last.chosen < start.chosen:
        message = _(
            "The held-out chosen answers have become less likely ({before:.1f} → {after:.1f} nats): the model "
            "forgets how to write them. A larger likelihood in {flag:preference_settings}, or a lower "
            "{flag:learning_rate}, keeps them.",
            before=start.chosen,
            after=last.chosen,
        )
        notes.append(Note(message))
    return notes


def _lengths(scores: PairScores) -> str:
    text = _(
        "Chosen answers have {chosen:.1f} tokens on average, rejected ones {rejected:.1f}",
        chosen=scores.chosen_tokens,
        rejected=scores.rejected_tokens,
    )
    if scores.longer_is_chosen is None:
        return f"{text}."
    return _(
        "{text}; the longer answer is the chosen one in {share:.1%} of the pairs.",
        text=text,
        share=scores.longer_is_chosen,
    )


def pair_curves(record: RunRecord) -> list[Curves]:
    """Return the accuracy, the margin and the log-probabilities by step; without points for a run that learns texts."""
    curve, held_out = record.preference_curve, record.pair_validations or record.pair_evaluations

    def trained(name: str, field: str, colour: int) -> Series:
        return Series(name, [(point.step, getattr(point, field)) for point in curve], colour=colour)

    def measured(name: str, field: str, band: Sequence[Interval] = ()) -> Series:
        return Series(name, [(one.step, getattr(one, field)) for one in held_out], band, _HELD_OUT)

    intervals = [one.accuracy_interval for one in held_out]
    training, other = _("training"), _("not trained on")
    return [
        Curves(
            _("Share of pairs that are right, by step"),
            [trained(training, "accuracy", _CHOSEN), measured(other, "accuracy", intervals)],
        ),
        Curves(
            _("Margin between chosen and rejected answers, by step"),
            [trained(training, "margin", _CHOSEN), measured(other, "margin")],
        ),
        Curves(
            _("Log-probability of an answer by step, nats"),
            [
                trained(_("chosen"), "chosen", _CHOSEN),
                trained(_("rejected"), "rejected", _REJECTED),
                measured(_("chosen, not trained on"), "chosen"),
            ],
        ),
    ]


def scores_table(names: Sequence[str], results: Sequence[TwoScores]) -> tuple[Table, list[str]]:
    """Return a table with a row for each model, and notes on it; changes are relative to the first model."""
    first, rows = results[0].by_sum, []
    for name, result in zip(names, results, strict=True):
        scores, per_token = result.by_sum, result.per_token
        change = "–"
        if scores is not first and scores.pairs == first.pairs:  # another tokenizer may refuse other pairs
            pairs = [(before == 1, after == 1) for before, after in zip(first.right, scores.right, strict=True)]
            low, high = paired_interval(pairs, first.prompts)
            change = f"{100 * (scores.accuracy - first.accuracy):+.1f}\n[{100 * low:+.1f}, {100 * high:+.1f}]"
        matched = "–" if scores.matched_accuracy is None else f"{scores.matched_accuracy:.1%}"
        means = f"{scores.chosen:.1f} / {scores.rejected:.1f}"
        rows.append([name, accuracy_text(scores), change, matched, accuracy_text(per_token), means])
    headers = [
        _("model"),
        _("accuracy"),
        _("change, percentage points"),
        _("at the same length"),
        _("accuracy per token"),
        _("log-probability of chosen / rejected"),
    ]
    notes = [
        _(
            "{pairs}; a pair is right if the chosen answer has the higher log-probability (per token: the higher "
            "mean). 95 % intervals in brackets",
            pairs=counts.pairs(first.pairs),
        ),
        _lengths(first),
    ]
    return Table(headers, rows), notes
