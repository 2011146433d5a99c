"""The table, the conclusion and the page of a sweep."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tsugiki.errors import summarise_list
from tsugiki.io.atomic import write_text
from tsugiki.io.formatting import format_duration, format_gigabytes, format_size
from tsugiki.language import _, ngettext
from tsugiki.methods.table import family_of
from tsugiki.report.formatting import FEW_DOCUMENTS, describe_intervals, format_change, format_value
from tsugiki.report.html import whole_page
from tsugiki.report.run import REPORT_FILE, samples_of
from tsugiki.report.sections import Curves, Lead, RankCurves, Series, section
from tsugiki.report.table import Table
from tsugiki.training.record.result import StepEvaluation, change_of_loss
from tsugiki.training.record.run_record import RunRecord, finished
from tsugiki.training.run.sweep import MIN_RELATIVE_GAIN, NeededRank, Point, change, needed_rank

_MAX_BANDS = 3  # with more runs, their intervals would hide each other


def sweep_table(points: Sequence[Point]) -> Table:
    """Return a table with a row for each run, compared with the best one, as in section 4.4.6 of the textbook chapter.

    A grid has a column for each axis. Without one, runs have their names, and families if their methods are of several.
    The retention loss is shown if it was measured.
    """
    best = min(points, key=lambda point: point.loss)
    axes = list(points[0].values)
    families = {family_of(point.record.config.method) for point in points} - {family_of("full")}
    retention = any(point.retention_change for point in points)
    rates = "learning_rate" not in axes
    return Table(
        [
            *(axes or [_("method")]),
            _("trainable parameters"),
            _("file"),
            *([_("learning rate")] if rates else []),
            _("time"),
            _("tokens/s"),
            _("peak memory"),
            _("perplexity"),
            _("bits/char"),
            _("held-out loss"),
            _("change from the best"),
            *([_("retention loss")] if retention else []),
        ],
        [
            [
                *([format_value(value) for value in point.values.values()] or [_named(point, len(families) > 1)]),
                _trainable(point.record),
                format_size(point.file_size),
                *([f"{point.record.chosen('learning_rate'):g}"] if rates else []),
                *_costs(point.record),
                *_losses(point.record),
                _("best") if point is best else format_change(change(best, point), digits=2),
                *([_retention(point)] if retention else []),
            ]
            for point in points
        ],
    )


def _named(point: Point, with_family: bool) -> str:
    return f"{point.name}\n{_(family_of(point.record.config.method))}" if with_family else point.name


def _trainable(record: RunRecord) -> str:
    parameters = finished(record)[1]
    return f"{parameters.trainable:,}\n{parameters.share:.2%}"


def _costs(record: RunRecord) -> list[str]:
    """Return the time, the tokens per second (also those that are not in the loss) and the peak of the memory."""
    training = finished(record)[0]
    memory = format_gigabytes(training.peak_memory) if training.peak_memory else "–"
    return [format_duration(training.seconds), f"{record.all_tokens_per_second():,.0f}", memory]


def _losses(record: RunRecord) -> list[str]:
    """Return perplexity, bits per character and loss on the held-out text, before and after."""
    before, after = record.evaluations[0], record.evaluations[-1]
    interval = after.loss_interval
    return [
        f"{before.perplexity:,.1f}\n→ {after.perplexity:,.1f}",
        f"{after.bits_per_char:.4f}",
        f"{before.loss:.4f} → {after.loss:.4f}\n" + (f"[{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""),
    ]


def _retention(point: Point) -> str:
    if point.retention_change is None:
        return "–"
    losses = point.record.retention_evaluations
    return f"{losses[0].loss:.3f} → {losses[-1].loss:.3f}\n{format_change(point.retention_change)}"


def sweep_sentence(points: Sequence[Point]) -> str:
    """Return the result of a sweep in words: the best point, and the sufficient rank, if the intervals show it."""
    best, *others = sorted(points, key=lambda point: point.loss)
    sentences = [
        _("Best of {count}: {name}, held-out loss {loss:.4f}.", count=len(points), name=best.name, loss=best.loss),
        *(_chance(best.record, others[0].name, others[0].record) if others else []),
    ]
    if needed := needed_rank(points):
        sentences.append(_rank_sentence(needed))
    retention = {point.name: losses[-1].loss for point in points if (losses := point.record.retention_evaluations)}
    if retention:
        lowest = min(retention, key=lambda name: retention[name])
        sentences.append(_("The retention loss is lowest with {name}.", name=lowest))
    return " ".join([*sentences, describe_intervals(len(best.record.evaluations[-1].independent))])


def _rank_sentence(needed: NeededRank) -> str:
    undecided = summarise_list([str(rank) for rank in needed.undecided])
    if needed.sufficient is None:
        return ngettext(
            "Which of the ranks {ranks} is sufficient cannot be told from {count} held-out document.",
            "Which of the ranks {ranks} is sufficient cannot be told from {count} held-out documents.",
            needed.documents,
            ranks=undecided,
            count=needed.documents,
        )
    if needed.sufficient == needed.highest and not needed.undecided:
        return _("The loss still falls up to rank {rank}, the highest one in the sweep.", rank=needed.highest)
    sentence = _(
        "Rank {rank} is sufficient: no other lowers the loss by {gain:.1%} or more (95 % confidence over documents).",
        rank=needed.sufficient,
        gain=MIN_RELATIVE_GAIN,
    )
    if not needed.undecided:
        return sentence
    return " ".join([sentence, _("Whether rank {ranks} is, too, cannot be told.", ranks=undecided)])


def _chance(best: RunRecord, name: str, second: RunRecord) -> list[str]:
    """Return a sentence if the held-out documents do not show that the best run is better than the second one."""
    worse = change_of_loss(best.evaluations[-1], second.evaluations[-1])
    if worse.interval is not None and worse.interval[0] > 0:
        return []
    return [
        ngettext(
            "That it is better than {name} cannot be told from {count} held-out document.",
            "That it is better than {name} cannot be told from {count} held-out documents.",
            worse.documents,
            name=name,
            count=worse.documents,
        )
    ]


def write_sweep_page(folder: Path, points: Sequence[Point]) -> Path:
    """Write `report.html` to a folder that exists: the conclusion, the table, curves of the runs, and their samples."""
    runs = [(point.name, point.record) for point in points]
    held_out = [_by_step(record.evaluations, name, at) for at, (name, record) in enumerate(runs)]
    if len(runs) > _MAX_BANDS:
        held_out = [replace(line, band=()) for line in held_out]
    by_rank = RankCurves(_("Final held-out loss by rank, nats per token"), _over_ranks(points))
    by_steps = Curves(_("Held-out text by step, bits per character"), held_out)
    path = folder / REPORT_FILE
    sections = [
        section("result", "", Lead(sweep_sentence(points))),
        section("runs", _("Runs"), sweep_table(points)),
        section("figures", _("Figures"), by_rank, by_steps),
        section("samples", _("Samples"), *samples_of(runs)),
    ]
    write_text(path, whole_page(_("Sweep · {name}", name=folder.name), sections))
    return path


def _by_step(evaluations: Sequence[StepEvaluation], name: str, colour: int) -> Series:
    """Return a line of bits per character, and a band if the intervals are narrow enough to see the line."""
    points = [(float(one.step), one.bits_per_char) for one in evaluations]
    known = [one for one in evaluations if len(one.independent) >= FEW_DOCUMENTS]
    band = [one.bits_per_char_interval for one in known if one.bits_per_char_interval]
    return Series(name, points, band if len(band) == len(points) else [], colour)


def _over_ranks(points: Sequence[Point]) -> list[Series]:
    """Return lines of loss over rank, one for each value of the other settings; none if the rank was not swept."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for point in points:
        if "r" in point.values:
            rest = " ".join(f"{axis}={format_value(value)}" for axis, value in point.values.items() if axis != "r")
            lines.setdefault(rest or _("held-out loss"), []).append((point.values["r"], point.loss))
    return [Series(name, sorted(line)) for name, line in lines.items() if len(line) > 1]
