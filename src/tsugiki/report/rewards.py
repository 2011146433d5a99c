"""What is shown of a run that learns by a reward: a sentence, a table, and curves by round."""

import math
from statistics import fmean

from tsugiki.language import _
from tsugiki.preference.sampling import AnswerCounts
from tsugiki.report.formatting import format_with_interval
from tsugiki.report.sections import Curves, Series
from tsugiki.report.table import Table
from tsugiki.training.record.interval import mean_interval
from tsugiki.training.record.rewards import RewardRound
from tsugiki.training.record.run_record import RunRecord


def reward_sentence(record: RunRecord) -> str:
    """Return what a run was worth on its held-out prompts."""
    first, kept = record.rounds[0], record.rounds[-1 if record.kept_round is None else record.kept_round]
    if kept is first:
        return _("No round has a higher reward on the validation prompts than the start.")
    if not first.held_out:
        return _("No prompts are held out, so nothing is measured on prompts that the run has not seen.")
    changes = [after - before for before, after in zip(first.held_out, kept.held_out, strict=True)]
    low, high = mean_interval(changes) or (math.nan, math.nan)
    message = _(
        "After round {round}, the mean reward on the held-out prompts ({count:,}) is {after:.3f} instead of "
        "{before:.3f}: {change:+.3f} (95 % interval {low:+.3f} to {high:+.3f})."
    )
    means = {"before": fmean(first.held_out), "after": fmean(kept.held_out), "change": fmean(changes)}
    return message.format(round=kept.round, count=len(changes), low=low, high=high, **means)


def reward_table(record: RunRecord) -> Table:
    """Return a row for each round; no rows for a run without a reward."""
    headers = [_("round"), _("reward, held-out prompts"), _("reward, validation prompts"), _("characters")]
    headers += [_("different 3-grams"), _("retention loss"), _("pairs"), _("all alike"), _("cut off")]
    headers.append(_("CPU s: sampling,\nscoring, learning,\njudging"))
    return Table(headers, [_row(one, one.learned, record.kept_round) for one in record.rounds])


def _row(one: RewardRound, learned: AnswerCounts, kept: int | None) -> list[str]:
    parts, shares = (one.held_out, one.validation), ((learned.alike, learned.drawn), (learned.cut, learned.answers))
    rewards = ["–" if not part else format_with_interval(fmean(part), mean_interval(part)) for part in parts]
    number = _("{round}, kept").format(round=one.round) if one.round == kept else str(one.round)
    retention = "–" if one.retention is None else f"{one.retention - 1:+.1%}"
    of_learned = [f"{learned.pairs:,}", *("–" if not of else f"{part / of:.0%}" for part, of in shares)]
    seconds = "+".join(f"{part:.0f}" for part in one.seconds.values()) or "–"
    return [number, *rewards, f"{one.length:.0f}", f"{one.distinct:.3f}", retention, *of_learned, seconds]


def reward_curves(record: RunRecord) -> list[Curves]:
    """Return the rewards by round, and the retention loss, which may get worse while they rise."""
    lines = []
    for part, name in (("held_out", _("held-out prompts")), ("validation", _("validation prompts"))):
        found = [(one.round, getattr(one, part)) for one in record.rounds if getattr(one, part)]
        bands = [mean_interval(rewards) or (fmean(rewards), fmean(rewards)) for _round, rewards in found]
        lines.append(Series(name, [(number, fmean(rewards)) for number, rewards in found], bands))
    forgotten = [(one.round, one.retention) for one in record.rounds if one.retention is not None]
    kept = None if record.kept_round is None else (record.kept_round, _("kept"))
    return [
        Curves(_("Mean reward by round, with 95 % intervals over prompts"), lines, kept),
        Curves(_("Loss on the retention text by round, relative to the base"), [Series(_("retention"), forgotten)]),
    ]
