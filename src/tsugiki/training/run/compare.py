"""Compare several methods, or the points of a grid of LoRA settings: a run for each, and their results in a file.

All runs have the same data, and those of a comparison the same number of steps. `training.run.several` executes them.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from tsugiki.io.atomic import check_writable
from tsugiki.io.file_names import ADAPTER_FILE, MODEL_FILES
from tsugiki.io.json import write_json
from tsugiki.io.locks import sole_use
from tsugiki.methods.table import family_of
from tsugiki.training.record.interval import Change, Interval
from tsugiki.training.record.result import change_of_loss
from tsugiki.training.record.run_record import RunRecord, finished
from tsugiki.training.run.several import run_all
from tsugiki.training.settings.several_runs import ComparisonConfig, SweepConfig
from tsugiki.training.tools.processes import require_one_process

COMPARISON_FILE, SWEEP_FILE = "comparison.json", "sweep.json"
_FORMAT = 2  # of both files
MIN_RELATIVE_GAIN = 0.005
"""A loss that is lower by less than this share is not worth more parameters."""


class ComparisonRow(BaseModel):
    """The results of one method. Times are in seconds, sizes in bytes, losses in nats per token."""

    name: str
    family: str
    """The family of its method (`methods.table.family_of`)."""
    trainable: int
    """Number of trained parameters."""
    share: float
    """Their share of all parameters."""
    file_size: int
    """Size of the weights of the adapter, or of the model."""
    learning_rate: float
    seconds: float
    tokens_per_second: float
    """All tokens, also those that are not in the loss."""
    peak_memory: int
    perplexity_before: float
    perplexity_after: float
    loss_before: float
    loss_after: float
    loss_interval: Interval | None
    """95 % interval of `loss_after`."""
    retention_loss_before: float | None
    """Loss on the text of `retention_data`; it rises with what a method forgets."""
    retention_loss_after: float | None
    retention_change: Change | None
    """Relative change of that loss."""


def compare(config: ComparisonConfig) -> dict[str, RunRecord]:
    """Run each method that has not finished yet, and write `comparison.json` to `config.out`.

    Returns name -> record, in the order of the methods. A folder that holds another run or one with other data is an
    error, and so are several processes.
    """
    runs = config.runs()
    with _folder_of("compare", config.out) as out:
        records = run_all(runs)
        rows = [row.model_dump(mode="json") for row in comparison_rows(records)]
        write_json(out / COMPARISON_FILE, {"format": _FORMAT, "rows": rows})
    return records


@contextmanager
def _folder_of(command: str, name: str) -> Iterator[Path]:
    """Lock the folder of all runs within the block, in the only process."""
    require_one_process(command)
    out = Path(name)
    check_writable(out)
    with sole_use(out):
        yield out


def comparison_rows(records: Mapping[str, RunRecord]) -> list[ComparisonRow]:
    """Return the results of finished runs, by the names of their methods."""
    return [_row(name, record) for name, record in records.items()]


@dataclass(frozen=True)
class Point:
    """A point of the grid, and its run."""

    name: str
    values: dict[str, Any]
    """Setting -> value."""
    record: RunRecord

    @property
    def loss(self) -> float:
        """Held-out loss at the end, in nats per token."""
        return self.record.evaluations[-1].loss


def sweep(config: SweepConfig) -> list[Point]:
    """Run each point of the grid that has not finished yet, and write `sweep.json`; errors as in `compare`."""
    grid = config.runs()
    with _folder_of("sweep", config.out) as out:
        records = run_all({name: settings for name, (_, settings) in grid.items()})
        points = [Point(name=name, values=values, record=records[name]) for name, (values, _) in grid.items()]
        write_json(out / SWEEP_FILE, {"format": _FORMAT, "points": [_result(point) for point in points]})
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


def _row(name: str, record: RunRecord) -> ComparisonRow:
    training, parameters = finished(record)
    before, after = record.evaluations[0], record.evaluations[-1]
    retention = record.retention_evaluations
    return ComparisonRow(
        name=name,
        family=family_of(record.config.method),
        trainable=parameters.trainable,
        share=parameters.share,
        file_size=_file_size(record.folder()),
        learning_rate=record.chosen("learning_rate"),
        seconds=training.seconds,
        tokens_per_second=record.all_tokens_per_second(),
        peak_memory=training.peak_memory,
        perplexity_before=before.perplexity,
        perplexity_after=after.perplexity,
        loss_before=before.loss,
        loss_after=after.loss,
        loss_interval=after.loss_interval,
        retention_loss_before=retention[0].loss if retention else None,
        retention_loss_after=retention[-1].loss if retention else None,
        retention_change=change_of_loss(retention[0], retention[-1]) if retention else None,
    )


def _file_size(folder: Path) -> int:
    """Return the size of the adapter's weights, or of the model's, which may be in several files."""
    adapter = folder / ADAPTER_FILE
    found = [adapter] if adapter.is_file() else folder.glob(MODEL_FILES)
    return sum(path.stat().st_size for path in found)


def _result(point: Point) -> dict[str, Any]:
    """Return the results of one point of the grid, for `sweep.json`."""
    training, parameters = finished(point.record)
    after = point.record.evaluations[-1]
    return {
        "name": point.name,
        "values": point.values,
        "trainable": parameters.trainable,
        "loss": after.loss,
        "loss_interval": after.loss_interval,
        "perplexity": after.perplexity,
        "bits_per_char": after.bits_per_char,
        "seconds": training.seconds,
    }
