"""The results of a benchmark, as JSON: machine, versions, command, workload, and the seconds of every step."""

import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tsugiki.bench.entries import BenchmarkEntry
from tsugiki.bench.runner import Measurement
from tsugiki.bench.workload import Workload
from tsugiki.io.json import write_json

_PACKAGES = (
    "tsugiki", "torch", "transformers", "accelerate", "peft", "trl", "datasets", "litgpt", "lightning", "mlx", "mlx-lm",
)  # fmt: skip


@dataclass(frozen=True)
class EntryResult:
    """The figures of one entry, beside those of its `Measurement`. A figure is None if it was not measured."""

    name: str
    summary: str
    notes: Mapping[str, str]
    problem: str | None
    tokens_per_second: float | None
    """Median over the counted steps."""
    slowest: float | None
    fastest: float | None
    ratio: float | None
    """Tokens per second divided by those of the first entry that was measured."""
    ratio_range: tuple[float, float] | None
    """The smallest and the largest ratio of the medians of two blocks in the same round; None with one round."""
    share: float | None
    """Share of the machine's limit for the entry's compute dtype, with attention counted whole."""
    loaded: int | None
    peak: int | None
    above_loaded: int | None
    blocks: Sequence[Sequence[float]]


@dataclass(frozen=True)
class Results:
    """The results of one benchmark."""

    work: Mapping[str, Any]
    """The fields of the `Workload`."""
    rows: Sequence[EntryResult]
    limits: Mapping[str, Mapping[str, Any]]
    """The machine's limits by dtype; empty if not measured."""
    command: str
    machine: Mapping[str, Any]
    date: str = field(default_factory=lambda: datetime.now(UTC).date().isoformat())
    versions: Mapping[str, str] = field(default_factory=lambda: installed_versions())
    kind: str = "train"
    """Older files hold `generate` for results of generation."""
    format: int = 2

    def write(self, folder: Path) -> None:
        """Write `results.json` atomically."""
        write_json(folder / "results.json", asdict(self))


def collect(
    workload: Workload,
    tokens: int,
    entries: Mapping[str, BenchmarkEntry],
    measurements: Sequence[Measurement],
    limits: Mapping[str, Any],
    command: str,
    machine: dict[str, Any],
) -> Results:
    """Compute the figures of each measurement, in the given order; `tokens` is the number of a step."""
    base = next((measurement for measurement in measurements if not measurement.problem), None)
    rows = [_entry_result(measurement, entries[measurement.name], tokens, base, limits) for measurement in measurements]
    return Results(asdict(workload), rows, limits, command, machine)


def installed_versions() -> dict[str, str]:
    """Return the versions of Python and of those packages that affect the figures and are installed."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _ratio_range(measurement: Measurement, base: Measurement) -> tuple[float, float] | None:
    """Return the smallest and the largest ratio of an entry's speed to that of `base` over the rounds."""
    rounds = zip(base.blocks, measurement.blocks, strict=False)
    ratios = [statistics.median(theirs) / statistics.median(ours) for theirs, ours in rounds]
    return (min(ratios), max(ratios)) if len(ratios) > 1 and measurement is not base else None


def _entry_result(
    measurement: Measurement,
    entry: BenchmarkEntry,
    tokens: int,
    base: Measurement | None,
    limits: Mapping[str, Mapping[str, Any]],
) -> EntryResult:
    speeds = [tokens / seconds for seconds in measurement.seconds] if not measurement.problem else []
    median = tokens / statistics.median(measurement.seconds) if speeds else None
    limit = limits.get(entry.compute_dtype or measurement.notes.get("base_dtype", ""), {}).get("tokens_per_second")
    return EntryResult(
        name=measurement.name,
        summary=entry.summary,
        notes=measurement.notes,
        problem=measurement.problem,
        tokens_per_second=median,
        slowest=min(speeds, default=None),
        fastest=max(speeds, default=None),
        ratio=median * statistics.median(base.seconds) / tokens if median and base else None,
        ratio_range=_ratio_range(measurement, base) if median and base else None,
        share=median / limit if median and limit and not entry.full else None,
        loaded=measurement.loaded,
        peak=measurement.peak,
        above_loaded=measurement.above_loaded,
        blocks=measurement.blocks,
    )
