"""The results of a benchmark, as JSON: machine, versions, command, workload, and the seconds of every step."""

import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, TypeAlias

from tsugiki.bench.entries import BenchmarkEntry
from tsugiki.bench.runner import Measurement
from tsugiki.bench.workload import NEW_TOKENS, Workload
from tsugiki.io.json import write_json

Kind: TypeAlias = Literal["train", "generate"]

_PACKAGES = (
    "tsugiki", "torch", "transformers", "accelerate", "peft", "trl", "datasets", "litgpt", "lightning", "mlx", "mlx-lm",
)  # fmt: skip


@dataclass(frozen=True)
class EntryResult:
    """The figures of one entry. Memory in bytes; None if not measured."""

    name: str
    summary: str
    notes: Mapping[str, str]
    problem: str | None
    """The reason why there are no figures."""
    tokens_per_second: float | None
    """Median over the counted steps."""
    slowest: float | None
    """Tokens per second of the slowest step."""
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
    """Seconds of each counted step, for each block."""


@dataclass(frozen=True)
class Results:
    """The results of one benchmark."""

    kind: Kind
    work: Mapping[str, Any]
    """The fields of the `Workload`."""
    rows: Sequence[EntryResult]
    limits: Mapping[str, Mapping[str, Any]]
    """By dtype; empty if not measured."""
    command: str
    machine: Mapping[str, Any]
    date: str = field(default_factory=lambda: datetime.now(UTC).date().isoformat())
    versions: Mapping[str, str] = field(default_factory=lambda: installed_versions())
    format: int = 2

    def write(self, folder: Path) -> None:
        """Write `results.json` atomically."""
        write_json(folder / "results.json", asdict(self))


def collect(
    kind: Kind,
    workload: Workload,
    entries: Mapping[str, BenchmarkEntry],
    measurements: Sequence[Measurement],
    limits: Mapping[str, Any],
    command: str,
    machine: dict[str, Any],
) -> Results:
    """Compute the figures of each measurement, in the order given."""
    tokens = workload.tokens if kind == "train" else workload.batch * NEW_TOKENS
    base = next((one for one in measurements if not one.problem), None)
    rows = [_entry_result(one, entries[one.name], tokens, base, limits) for one in measurements]
    return Results(kind, asdict(workload), rows, limits, command, machine)


def installed_versions() -> dict[str, str]:
    """Return the versions of Python and of those packages that affect the figures and are installed."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _ratio_range(one: Measurement, base: Measurement) -> tuple[float, float] | None:
    """Return the range over the rounds of how many times as fast as `base` an entry was."""
    rounds = zip(base.blocks, one.blocks, strict=False)
    ratios = [statistics.median(theirs) / statistics.median(ours) for theirs, ours in rounds]
    return (min(ratios), max(ratios)) if len(ratios) > 1 and one is not base else None


def _entry_result(
    one: Measurement,
    entry: BenchmarkEntry,
    tokens: int,
    base: Measurement | None,
    limits: Mapping[str, Mapping[str, Any]],
) -> EntryResult:
    speeds = [tokens / seconds for seconds in one.seconds] if not one.problem else []
    median = tokens / statistics.median(one.seconds) if speeds else None
    limit = limits.get(entry.compute_dtype or one.notes.get("base_dtype", ""), {}).get("tokens_per_second")
    return EntryResult(
        name=one.name,
        summary=entry.summary,
        notes=one.notes,
        problem=one.problem,
        tokens_per_second=median,
        slowest=min(speeds, default=None),
        fastest=max(speeds, default=None),
        ratio=median * statistics.median(base.seconds) / tokens if median and base else None,
        ratio_range=_ratio_range(one, base) if median and base else None,
        share=median / limit if median and limit and not entry.full else None,
        loaded=one.loaded,
        peak=one.peak,
        above_loaded=one.above_loaded,
        blocks=one.blocks,
    )
