"""A grid of LoRA settings on one base and one text: the base is loaded once, the text tokenised once."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tsugiki.io.json import write_json
from tsugiki.lora.graft import ungraft
from tsugiki.train.evaluation.interval import Interval, change_interval
from tsugiki.train.progress import RunProgress
from tsugiki.train.record import RunRecord
from tsugiki.train.run import earlier_run, load, run, start_or_resume
from tsugiki.train.workflows.compare_config import SweepConfig

SWEEP_FILE = "sweep.json"
MIN_RELATIVE_GAIN = 0.005
"""Share of the loss, below which a difference is not worth more parameters."""


@dataclass(frozen=True)
class Point:
    """One point of the grid, and the run that was made of it."""

    name: str
    values: Mapping[str, Any]
    record: RunRecord

    @property
    def loss(self) -> float:
        """Held-out loss at the end, in nats a token."""
        return float(self.record.evaluations[-1]["loss"])


def sweep(config: SweepConfig, progress: RunProgress | None = None) -> list[Point]:
    """Carry out, or take over, the run of each point; the table is then in `config.out`.

    Raises:
        TsugikiError: settings that cannot be, a folder with another run, or whatever stops a run.
    """
    runs = config.runs()
    earlier = {name: earlier_run(name, settings) for name, (_, settings) in runs.items()}
    points = []
    loaded = None
    for number, (name, (values, settings)) in enumerate(runs.items(), 1):
        done = earlier[name]
        if done and done.status == "finished":
            points.append(Point(name, values, done))
            continue
        with progress or RunProgress() as shown:
            shown.say(f"{number} of {len(runs)}: {name}")
            model, tokenizer, data = loaded = loaded or load(settings, shown)
            record, checkpoint = start_or_resume(settings.to_record(), Path(settings.out), resume=done is not None)
            run(settings, model, tokenizer, data, record, checkpoint, shown)
            ungraft(model)
        points.append(Point(name, values, record))
    table = [{"name": point.name, "values": dict(point.values), **_figures(point.record)} for point in points]
    write_json(Path(config.out) / SWEEP_FILE, {"format": 1, "points": table})
    return points


def change(best: Point, other: Point) -> tuple[float, Interval | None]:
    """Relative change of the held-out loss from the best point to another, and its 95 % interval over documents."""
    first, last = best.record.evaluations[-1], other.record.evaluations[-1]
    return other.loss / best.loss - 1, change_interval(first["documents"], last["documents"])


def smallest_sufficient_rank(points: list[Point]) -> Point | None:
    """The point of the smallest rank from which on nothing is gained; None where rank was not swept.

    Of each rank its best point counts. Nothing is gained where the best of all has a loss lower by less than
    `MIN_RELATIVE_GAIN`, or where its lead may be luck: the interval of the change begins at zero or below.
    """
    ranked = [point for point in points if "r" in point.values]
    if len({point.values["r"] for point in ranked}) < 2:
        return None
    best = min(ranked, key=lambda point: point.loss)
    for rank in sorted({point.values["r"] for point in ranked}):
        own = min((point for point in ranked if point.values["r"] == rank), key=lambda point: point.loss)
        worse, interval = change(best, own)
        if worse < MIN_RELATIVE_GAIN or (interval is not None and interval[0] <= 0):
            return own
    return best


def _figures(record: RunRecord) -> dict[str, Any]:
    after = record.evaluations[-1]
    return {
        "trainable": record.parameters["trainable"],
        "loss": after["loss"],
        "loss_interval": after["loss_interval"],
        "perplexity": after["perplexity"],
        "bits_per_char": after["bits_per_char"],
        "seconds": record.training["seconds"],
    }
