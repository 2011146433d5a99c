"""What is shown of a run that learns by a reward: sentences, a table, and curves by round and by strength."""

import math
import shlex
from collections.abc import Iterator
from statistics import fmean

from tsugiki.language import _
from tsugiki.report.formatting import format_with_interval
from tsugiki.report.sections import Curves, Part, Sentence, Series
from tsugiki.report.table import Table
from tsugiki.training.record.interval import mean_interval
from tsugiki.training.record.result import RewardRound
from tsugiki.training.record.run_record import RunRecord


def reward_sentence(record: RunRecord) -> str:
    """Return what a run was worth on its held-out prompts."""
    first, kept = record.rounds[0], record.kept_reward or record.rounds[-1]
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
    return message.format(round=kept.name, count=len(changes), low=low, high=high, **means)


def reward_parts(record: RunRecord) -> Iterator[Part]:
    """Yield what was judged, why one of it is kept, the command for another one, and curves."""
    judged = sorted([*record.weakened, *record.rounds], key=lambda one: (one.round, one.strength))
    kept = record.kept_reward
    headers = [_("round ×\nstrength"), _("reward,\nheld-out prompts"), _("validation\nprompts")]
    headers += [_("different\n3-grams"), _("empty or\nrepeated"), _("retention\nloss")]
    yield Table(headers, [_row(one, one is kept) for one in judged])
    if kept is not None:
        yield from map(Sentence, _why_kept(judged, kept))
    others = [one for one in record.weakened if one is not kept]
    if others and record.config.out:
        last, out = others[-1], record.config.out
        words = "adapters", "combine", f"{out}/rounds/{last.round}", "--weights", f"{last.strength:g}"
        command = shlex.join(["tsugiki", *words, "--out", f"{out}-other"])
        yield Sentence(_("To choose another round or strength: {command}", command=command))
    headers = [_("round"), _("characters"), _("pairs"), _("all alike"), _("cut off")]
    headers += [_("CPU s: sampling, scoring,\nlearning, judging")]
    yield Table(headers, [_learned(one) for one in record.rounds])
    yield from _curves(record)


def _why_kept(judged: list[RewardRound], kept: RewardRound) -> Iterator[str]:
    """Yield why a model was kept, and not the one with the highest reward, in a sentence."""
    best = max(judged, key=lambda one: one.reward)
    if best.reward <= kept.reward and best.validation:
        yield _("Nothing that was judged has a higher reward on the validation prompts than what is kept.")
    elif best.left_out is not None:  # unknown in records of earlier versions
        reasons = {
            "retention": _("its loss on the retention text has risen too much"),
            "variety": _("its answers have less than three quarters of the different 3-grams at the start"),
            "loops": _("certainly more of its answers than at the start are empty or repeat themselves"),
        }
        message = _(
            "Round {round} has a higher reward ({reward:.3f} on the validation prompts), but is not kept: {reason}."
        )
        if not best.validation:
            message = _("Round {round} is the last and strongest one, but is not kept: {reason}.")
        yield message.format(round=best.name, reward=best.reward, reason=reasons[best.left_out])


def _row(one: RewardRound, is_kept: bool) -> list[str]:
    """Return what was judged of a round, or of a part of its update."""
    rewards = format_with_interval(fmean(one.held_out), mean_interval(one.held_out)) if one.held_out else "–"
    chosen_by = f"{fmean(one.validation):.3f}" if one.validation else "–"
    name = _("{round}\nkept", round=one.name) if is_kept else one.name
    retention = "–" if one.retention is None else f"{one.retention - 1:+.1%}"
    spoiled = f"{fmean(one.spoiled):.0%}" if one.spoiled else "–"
    return [name, rewards, chosen_by, f"{one.distinct:.3f}", spoiled, retention]


def _learned(one: RewardRound) -> list[str]:
    """Return how long the answers of a round are, and what the round learned from the answers before it."""
    learned = one.learned
    cells = [one.name, f"{one.length:.0f}"]
    cells += [f"{learned.pairs:,}", f"{learned.alike / learned.drawn:.0%}"] if learned.drawn else ["–", "–"]
    cells.append(f"{learned.cut / learned.answers:.0%}" if learned.answers else "–")
    return [*cells, "+".join(f"{part:.0f}" for part in one.seconds.values()) or "–"]


def _curves(record: RunRecord) -> Iterator[Curves]:
    """Yield rewards, and forgetting and variety, which may get worse while they rise, by round and by strength."""
    kept = None if record.kept_round is None else (record.kept_round, _("kept"))
    yield Curves(
        _("Reward, forgetting and variety by round"), _lines([(one.round, one) for one in record.rounds]), kept
    )
    if record.weakened:
        whole = record.rounds[record.weakened[0].round]
        rows = [(0, record.rounds[0]), *((round(100 * one.strength), one) for one in (*record.weakened, whole))]
        yield Curves(
            _("Reward, forgetting and variety by percent of the update of round {round}", round=whole.round),
            _lines(rows),
        )


def _lines(rows: list[tuple[int, RewardRound]]) -> list[Series]:
    return [
        Series(_("reward, held-out prompts"), [(x, fmean(one.held_out or [math.nan])) for x, one in rows]),
        Series(_("reward, validation prompts"), [(x, fmean(one.validation or [math.nan])) for x, one in rows]),
        Series(_("rise of the retention loss"), [(x, (one.retention or 1.0) - 1) for x, one in rows]),
        Series(_("different 3-grams"), [(x, one.distinct) for x, one in rows]),
    ]
