"""The tables and the pages of a comparison and of a sweep."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tsugiki.errors import summarise_list
from tsugiki.io.atomic import write_text
from tsugiki.io.formatting import format_duration, format_gigabytes, format_size
from tsugiki.language import _, ngettext
from tsugiki.methods.table import family_of
from tsugiki.report.formatting import describe_intervals, format_change, format_value
from tsugiki.report.html import whole_page
from tsugiki.report.run import REPORT_FILE, by_step, samples_of
from tsugiki.report.sections import Curves, Lead, RankCurves, Series, section
from tsugiki.report.table import Table
from tsugiki.training.record.result import change_of_loss
from tsugiki.training.record.run_record import RunRecord, finished
from tsugiki.training.run.compare import MIN_RELATIVE_GAIN, ComparisonRow, NeededRank, Point, change, needed_rank

_MAX_BANDS = 3  # with more runs, their intervals would hide each other


def comparison_table(rows: Sequence[ComparisonRow]) -> Table:
    """Return the table of a comparison, as in section 4.4.6 of the textbook chapter, with a row for each method.

    Families are named if the methods are of several, and the retention loss is shown if it was measured.
    """
    several = len({row.family for row in rows} - {family_of("full")}) > 1
    retention = any(row.retention_loss_before is not None for row in rows)
    headers = [_("method"), _("trainable parameters"), _("file"), _("learning rate"), _("time"), _("tokens/s")]
    headers += [_("peak memory"), _("perplexity"), _("held-out loss")]
    return Table(
        headers + ([_("retention loss")] if retention else []),
        [
            [
                f"{row.name}\n{_(row.family)}" if several else row.name,
                f"{row.trainable:,}\n{row.share:.2%}",
                format_size(row.file_size),
                f"{row.learning_rate:g}",
                format_duration(row.seconds),
                f"{row.tokens_per_second:,.0f}",
                format_gigabytes(row.peak_memory) if row.peak_memory else "–",
                f"{row.perplexity_before:,.1f}\n→ {row.perplexity_after:,.1f}",
                f"{row.loss_before:.3f} → {row.loss_after:.3f}\n{_interval(row)}",
                *([_retention(row)] if retention else []),
            ]
            for row in rows
        ],
    )


def write_comparison_page(folder: Path, rows: Sequence[ComparisonRow], records: Mapping[str, RunRecord]) -> Path:
    """Write `report.html` of a comparison (see `write_comparison`)."""
    title, lead = _("Comparison · {name}").format(name=folder.name), comparison_sentence(rows, records)
    return write_comparison(folder, title, lead, comparison_table(rows), list(records.items()))


def sweep_table(points: Sequence[Point]) -> Table:
    """Return a table with a row for each point of the grid, compared with the best one."""
    best = min(points, key=lambda point: point.loss)
    headers = [
        *points[0].values,
        _("trainable parameters"),
        _("held-out loss"),
        _("bits/char"),
        _("change from the best"),
        _("time"),
    ]
    return Table(
        headers,
        [
            [
                *(format_value(value) for value in point.values.values()),
                f"{finished(point.record)[1].trainable:,}",
                f"{point.loss:.4f}",
                f"{point.record.evaluations[-1].bits_per_char:.4f}",
                _("best") if point is best else format_change(change(best, point), digits=2),
                format_duration(finished(point.record)[0].seconds),
            ]
            for point in points
        ],
    )


def sweep_sentence(points: Sequence[Point]) -> str:
    """Return the result of a sweep in words: the best point, and the sufficient rank, if the intervals show it."""
    best, *others = sorted(points, key=lambda point: point.loss)
    sentences = [
        _("Best of {count}: {name}, held-out loss {loss:.4f}.").format(
            count=len(points), name=best.name, loss=best.loss
        ),
        *(_chance(best.record, others[0].name, others[0].record) if others else []),
    ]
    needed = needed_rank(points)
    return " ".join([*sentences, *([] if needed is None else [_rank_sentence(needed)]), _intervals(best.record)])


def _rank_sentence(needed: NeededRank) -> str:
    undecided = summarise_list([str(rank) for rank in needed.undecided])
    if needed.sufficient is None:
        return ngettext(
            "Which of the ranks {ranks} is sufficient cannot be told from {count} held-out document.",
            "Which of the ranks {ranks} is sufficient cannot be told from {count} held-out documents.",
            needed.documents,
        ).format(ranks=undecided, count=needed.documents)
    if needed.sufficient == needed.highest and not needed.undecided:
        return _("The loss still falls up to rank {rank}, the highest one in the sweep.").format(rank=needed.highest)
    sentence = _(
        "Rank {rank} is sufficient: no other lowers the loss by {gain:.1%} or more (95 % confidence over documents)."
    ).format(rank=needed.sufficient, gain=MIN_RELATIVE_GAIN)
    if not needed.undecided:
        return sentence
    return " ".join([sentence, _("Whether rank {ranks} is, too, cannot be told.").format(ranks=undecided)])


def comparison_sentence(rows: Sequence[ComparisonRow], records: Mapping[str, RunRecord]) -> str:
    """Return the result of a comparison in words."""
    best, *others = sorted(rows, key=lambda row: row.loss_after)
    training = finished(records[best.name])[0]
    sentences = [
        _("On the same {tokens:,} tokens, the held-out loss is lowest with {name}: {before:.3f} → {after:.3f}.").format(
            tokens=training.tokens, name=best.name, before=best.loss_before, after=best.loss_after
        ),
        *(_chance(records[best.name], others[0].name, records[others[0].name]) if others else []),
    ]
    retention = {row.name: row.retention_loss_after for row in rows if row.retention_loss_after is not None}
    if retention:
        lowest = min(retention, key=lambda name: retention[name])
        sentences.append(_("The retention loss is lowest with {name}.").format(name=lowest))
    return " ".join([*sentences, _intervals(records[best.name])])


def _intervals(record: RunRecord) -> str:
    return describe_intervals(len(record.evaluations[-1].independent))


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
        ).format(name=name, count=worse.documents)
    ]


def write_sweep_page(folder: Path, points: Sequence[Point]) -> Path:
    """Write `report.html` of a sweep (see `write_comparison`)."""
    ranks = [RankCurves(_("Final held-out loss by rank, nats per token"), _over_ranks(points))]
    runs = [(point.name, point.record) for point in points]
    title = _("Sweep · {name}").format(name=folder.name)
    return write_comparison(folder, title, sweep_sentence(points), sweep_table(points), runs, ranks)


def write_comparison(
    folder: Path,
    title: str,
    lead: str,
    table: Table,
    runs: Sequence[tuple[str, RunRecord]],
    figures: Sequence[Curves] = (),
) -> Path:
    """Write `report.html` to a folder that exists: a table, the figures, curves of the runs, and their samples.

    Each run has a unique name. The lead is a sentence with the main result.
    """
    held_out = [by_step(record.evaluations, name, "bits_per_char", at) for at, (name, record) in enumerate(runs)]
    if len(runs) > _MAX_BANDS:
        held_out = [replace(line, band=()) for line in held_out]
    by_steps = Curves(_("Held-out text by step, bits per character"), held_out)
    path = folder / REPORT_FILE
    sections = [
        section("result", "", Lead(lead)),
        section("runs", _("Runs"), table),
        section("figures", _("Figures"), *figures, by_steps),
        section("samples", _("Samples"), *samples_of(runs)),
    ]
    write_text(path, whole_page(title, sections))
    return path


def _over_ranks(points: Sequence[Point]) -> list[Series]:
    """Return lines of loss over rank, one for each value of the other settings; none if the rank was not swept."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for point in points:
        if "r" in point.values:
            rest = " ".join(f"{axis}={format_value(value)}" for axis, value in point.values.items() if axis != "r")
            lines.setdefault(rest or _("held-out loss"), []).append((point.values["r"], point.loss))
    return [Series(name, sorted(line)) for name, line in lines.items() if len(line) > 1]


def _retention(row: ComparisonRow) -> str:
    if row.retention_loss_before is None or row.retention_loss_after is None or row.retention_change is None:
        return "–"
    change = format_change(row.retention_change)
    return f"{row.retention_loss_before:.3f} → {row.retention_loss_after:.3f}\n{change}"


def _interval(row: ComparisonRow) -> str:
    return "" if row.loss_interval is None else f"[{row.loss_interval[0]:.3f}, {row.loss_interval[1]:.3f}]"
