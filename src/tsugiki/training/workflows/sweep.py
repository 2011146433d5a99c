"""Sweep over a grid of LoRA settings: each point is a run (see `several`)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from tsugiki.io.atomic import check_writable
from tsugiki.io.json import write_json
from tsugiki.io.locks import sole_use
from tsugiki.training.evaluation.interval import Change, Interval
from tsugiki.training.evaluation.result import change_of_loss
from tsugiki.training.processes import require_one_process
from tsugiki.training.progress import RunProgress
from tsugiki.training.record import RunRecord, finished
from tsugiki.training.workflows.compare_config import SweepConfig
from tsugiki.training.workflows.several import run_all

SWEEP_FILE = "sweep.json"
MIN_RELATIVE_GAIN = 0.005
"""A loss that is lower by less than this share is not worth more parameters."""


class Point(BaseModel):
    """A point of the grid, and its run."""

    name: str
    values: dict[str, Any]
    """Setting -> value."""
    record: RunRecord

    @property
    def loss(self) -> float:
        """Held-out loss at the end, in nats per token."""
        return self.record.evaluations[-1].loss


class PointResult(BaseModel):
    """The results of one point of the grid, in `sweep.json`."""

    name: str
    values: dict[str, Any]
    trainable: int
    loss: float
    loss_interval: Interval | None
    perplexity: float
    bits_per_char: float
    seconds: float


class Sweep(BaseModel):
    """The content of `sweep.json`."""

    format: int = 2
    points: list[PointResult]


def sweep(config: SweepConfig, progress: RunProgress | None = None) -> list[Point]:
    """Run each point of the grid that has not finished yet, and write `sweep.json` to `config.out`.

    Args:
        config: the settings.
        progress: where to show the progress; None: a new display on standard error.

    Raises:
        TsugikiError: invalid settings, a folder that holds another run or one with other data, an error in a run, or
            several processes.
    """
    require_one_process("sweep")
    out = Path(config.out)
    check_writable(out)
    grid = config.runs()
    with sole_use(out):
        records = run_all({name: settings for name, (_, settings) in grid.items()}, progress)
        points = [Point(name=name, values=values, record=records[name]) for name, (values, _) in grid.items()]
        results = [_result(point) for point in points]
        write_json(out / SWEEP_FILE, Sweep(points=results).model_dump(mode="json"))
    return points


@dataclass(frozen=True)
class NeededRank:
    """The rank that suffices, according to a sweep. Each rank is represented by its best point."""

    sufficient: int | None
    """The smallest rank for which the 95 % interval over documents shows that no point has a loss that is lower by
    `MIN_RELATIVE_GAIN` or more; None if the intervals show this for no rank."""
    undecided: tuple[int, ...]
    """Lower ranks whose intervals do not show whether they are sufficient."""
    highest: int
    """The highest rank of the grid."""
    documents: int
    """Number of held-out documents; near-duplicates count as one."""


def change(best: Point, other: Point) -> Change:
    """Return the relative change of the held-out loss from the best point to another one."""
    return change_of_loss(best.record.evaluations[-1], other.record.evaluations[-1])


def needed_rank(points: Sequence[Point]) -> NeededRank | None:
    """Return the sufficient rank and the undecided ranks of a sweep; None if the grid has only one rank."""
    ranked = [point for point in points if "r" in point.values]
    ranks = sorted({point.values["r"] for point in ranked})
    if len(ranks) < 2:
        return None
    documents = len(points[0].record.evaluations[-1].independent)
    undecided: list[int] = []
    for rank in ranks:
        candidate = min((point for point in ranked if point.values["r"] == rank), key=lambda point: point.loss)
        worse = [change(other, candidate).interval for other in ranked if other is not candidate]
        if all(interval is not None and interval[1] < MIN_RELATIVE_GAIN for interval in worse):
            return NeededRank(rank, tuple(undecided), ranks[-1], documents)
        if not any(interval is not None and interval[0] >= MIN_RELATIVE_GAIN for interval in worse):
            undecided.append(rank)
    return NeededRank(None, tuple(undecided), ranks[-1], documents)


def _result(point: Point) -> PointResult:
    training, parameters = finished(point.record)
    after = point.record.evaluations[-1]
    return PointResult(
        name=point.name,
        values=point.values,
        trainable=parameters.trainable,
        loss=after.loss,
        loss_interval=after.loss_interval,
        perplexity=after.perplexity,
        bits_per_char=after.bits_per_char,
        seconds=training.seconds,
    )
