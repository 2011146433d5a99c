"""The tables of a comparison and of a sweep, on standard output."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tsugiki.train.bootstrap import Interval
from tsugiki.train.comparison import COMPARISON_FILE, Row
from tsugiki.train.sweep import SWEEP_FILE, Point, change, enough_rank

_PLAIN_WIDTH = 150  # where no terminal bounds it


def print_comparison(rows: Sequence[Row], out: Path) -> None:
    """The chapter's table, a line for each method."""
    console = _console()
    own = any(row.own_loss_before is not None for row in rows)
    table = Table("method", "trains", "file", "rate", "time", "tokens/s", "memory", "perplexity", "held-out loss")
    if own:
        table.add_column("own text's loss")
    for row in rows:
        cells = [
            row.name,
            f"{row.trainable:,}\n{row.share:.2%}",
            f"{row.file_size / 1e6:.2f} MB",
            f"{row.learning_rate:g}",
            f"{row.seconds:,.0f} s",
            f"{row.tokens_per_second:,.0f}",
            f"{row.peak_memory / 1e9:.2f} GB",
            f"{row.perplexity_before:,.1f}\n→ {row.perplexity_after:,.1f}",
            f"{row.loss_before:.3f} → {row.loss_after:.3f}\n{_interval(row.loss_interval, '.3f')}",
        ]
        if own:
            cells.append(_own(row))
        table.add_row(*cells)
    console.print(table)
    console.print(f"in brackets 95 % intervals over documents; table: {out / COMPARISON_FILE}", soft_wrap=True)


def print_sweep(points: Sequence[Point], out: Path) -> None:
    """A line for each point of the grid, and from which rank on nothing is gained."""
    console = _console()
    table = Table(*points[0].values, "trains", "held-out loss", "bits/char", "against the best", "time")
    best = min(points, key=lambda point: point.loss)
    for point in points:
        after = point.record.evaluations[-1]
        change_of, interval = change(best, point)
        table.add_row(
            *(", ".join(value) if isinstance(value, list) else f"{value}" for value in point.values.values()),
            f"{point.record.parameters['trainable']:,}",
            f"{point.loss:.4f}",
            f"{after['bits_per_char']:.4f}",
            "best" if point is best else f"{change_of:+.2%} {_interval(interval, '+.2%')}",
            f"{point.record.training['seconds']:,.0f} s",
        )
    console.print(table)
    enough = enough_rank(list(points))
    if enough is not None:
        console.print(
            f"rank {enough.values['r']} is enough: no higher one is surely better on this text (95 %, over documents)",
            soft_wrap=True,
        )
    console.print(f"table: {out / SWEEP_FILE}", soft_wrap=True)


def _own(row: Row) -> str:
    if row.own_loss_before is None or row.own_loss_after is None:
        return "–"
    change_of = row.own_loss_after / row.own_loss_before - 1
    return f"{row.own_loss_before:.3f} → {row.own_loss_after:.3f}\n{change_of:+.1%} " + _interval(
        row.own_change_interval, "+.1%"
    )


def _interval(interval: Interval | None, form: str) -> str:
    return "" if interval is None else f"[{interval[0]:{form}}, {interval[1]:{form}}]"


def _console() -> Console:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _PLAIN_WIDTH
    return console
