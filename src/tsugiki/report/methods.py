"""The tables of a comparison and of a sweep as text, and their pages."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from markupsafe import Markup

from tsugiki.io.formatting import format_duration, format_gigabytes, format_size
from tsugiki.methods.method import Family
from tsugiki.methods.table import family_of
from tsugiki.report.comparison import write_comparison
from tsugiki.report.formatting import Table, format_change
from tsugiki.report.plots import Mark, Series, over_parameters, over_ranks
from tsugiki.train.record import RunRecord, finished
from tsugiki.train.workflows.compare import ComparisonRow
from tsugiki.train.workflows.sweep import MIN_RELATIVE_GAIN, Point, change, smallest_sufficient_rank

_FAMILIES = get_args(Family)


def comparison_table(rows: Sequence[ComparisonRow]) -> Table:
    """The chapter's table in 4.4.6, a row for each method.

    Families are told where adapters of several are compared, and what each forgets where that was measured.
    """
    several = len({row.family for row in rows} - {family_of("full")}) > 1
    retention = any(row.retention_loss_before is not None for row in rows)
    headers = ["method", "trains", "file", "rate", "time", "tokens/s", "memory", "perplexity", "held-out loss"]
    return headers + (["retention loss"] if retention else []), [
        [
            f"{row.name}\n{row.family}" if several else row.name,
            f"{row.trainable:,}\n{row.share:.2%}",
            format_size(row.file_size),
            f"{row.learning_rate:g}",
            format_duration(row.seconds),
            f"{row.tokens_per_second:,.0f}",
            format_gigabytes(row.peak_memory),
            f"{row.perplexity_before:,.1f}\n→ {row.perplexity_after:,.1f}",
            f"{row.loss_before:.3f} → {row.loss_after:.3f}\n{_interval(row)}",
            *([_retention(row)] if retention else []),
        ]
        for row in rows
    ]


def write_comparison_page(folder: Path, rows: Sequence[ComparisonRow], records: Mapping[str, RunRecord]) -> Path:
    """`report.html` of a comparison.

    Raises:
        TsugikiError: it cannot be written.
    """
    best = min(rows, key=lambda row: row.loss_after)
    lead = f"On the same text and the same {_budget(records)}, the held-out loss is lowest with {best.name}: "
    lead += f"{best.loss_before:.3f} → {best.loss_after:.3f}."
    kept = [row for row in rows if row.retention_loss_before is not None and row.retention_loss_after is not None]
    if kept:
        least = min(kept, key=lambda row: row.retention_loss_after or 0.0)
        lead += f" The base's own kind of text suffers least with {least.name}."
    headers, cells = comparison_table(rows)
    title, runs = f"Comparison · {folder.name}", list(records.items())
    return write_comparison(folder, title, lead, headers, cells, runs, _over_parameters(rows))


def _over_parameters(rows: Sequence[ComparisonRow]) -> list[Markup]:
    """Perplexity over what trains, coloured by family; nothing of a single method."""
    marks = [
        Mark(f"{row.name} ({row.family})", row.trainable, row.perplexity_after, _FAMILIES.index(row.family))
        for row in rows
    ]
    caption = "Held-out perplexity at the end by parameters that train"
    return [over_parameters(marks, caption)] if len(marks) > 1 else []


def sweep_table(points: Sequence[Point]) -> Table:
    """A row for each point of the grid, compared with the best one."""
    best = min(points, key=lambda point: point.loss)
    headers = [*points[0].values, "trains", "held-out loss", "bits/char", "against the best", "time"]
    return headers, [
        [
            *(_plain(value) for value in point.values.values()),
            f"{finished(point.record)[1].trainable:,}",
            f"{point.loss:.4f}",
            f"{point.record.evaluations[-1].bits_per_char:.4f}",
            "best" if point is best else format_change(change(best, point), digits=2),
            format_duration(finished(point.record)[0].seconds),
        ]
        for point in points
    ]


def sweep_sentence(points: Sequence[Point]) -> str:
    """What came out of a sweep: the best point, and from which rank on nothing is gained."""
    best = min(points, key=lambda point: point.loss)
    sentence = f"Best of {len(points)}: {best.name}, held-out loss {best.loss:.4f}."
    enough = smallest_sufficient_rank(list(points))
    if enough is not None and enough.values["r"] == max(point.values["r"] for point in points):
        sentence += f" Rank still pays at {enough.values['r']}, the highest tried."
    elif enough is not None:
        sentence += (
            f" Rank {enough.values['r']} is enough: no higher one lowers the loss by {MIN_RELATIVE_GAIN:.1%}, "
            "or not surely so (95 % over documents)."
        )
    return sentence


def write_sweep_page(folder: Path, points: Sequence[Point]) -> Path:
    """`report.html` of a sweep.

    Raises:
        TsugikiError: it cannot be written.
    """
    headers, cells = sweep_table(points)
    lines = _over_ranks(points)
    figures = [over_ranks(lines, "Held-out loss at the end by rank, nats a token")] if lines else []
    runs = [(point.name, point.record) for point in points]
    title = f"Sweep · {folder.name}"
    return write_comparison(folder, title, sweep_sentence(points), headers, cells, runs, figures)


def _over_ranks(points: Sequence[Point]) -> list[Series]:
    """Loss over rank, a line for each setting of the other axes; none where rank was not swept."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for point in points:
        if "r" in point.values:
            rest = " ".join(f"{axis}={_plain(value)}" for axis, value in point.values.items() if axis != "r")
            lines.setdefault(rest or "held-out loss", []).append((point.values["r"], point.loss))
    return [Series(name, sorted(line)) for name, line in lines.items() if len(line) > 1]


def _budget(records: Mapping[str, RunRecord]) -> str:
    training, _ = finished(next(iter(records.values())))
    return f"{training.tokens:,} tokens"


def _retention(row: ComparisonRow) -> str:
    if row.retention_loss_before is None or row.retention_loss_after is None or row.retention_change is None:
        return "–"
    change = format_change(row.retention_change)
    return f"{row.retention_loss_before:.3f} → {row.retention_loss_after:.3f}\n{change}"


def _interval(row: ComparisonRow) -> str:
    return "" if row.loss_interval is None else f"[{row.loss_interval[0]:.3f}, {row.loss_interval[1]:.3f}]"


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
