"""What was measured, as JSON: the machine, the versions, the command, the work, and every step's seconds."""

import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, TypeAlias

from tsugiki.adapters.format import read_json, write_json
from tsugiki.bench.contenders import CONTENDERS, GENERATORS, BenchmarkEntry
from tsugiki.bench.runner import Measured
from tsugiki.bench.work import NEW_TOKENS, Work
from tsugiki.errors import TsugikiError

Kind: TypeAlias = Literal["train", "generate"]

RESULTS_FILE = "results.json"
_FORMAT = 1
_PACKAGES = (
    "tsugiki", "torch", "transformers", "accelerate", "peft", "trl", "datasets", "litgpt", "lightning", "mlx", "mlx-lm",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One contender's figures. Memory in bytes; None where it was not measured."""

    name: str
    about: str
    notes: Mapping[str, str]
    problem: str | None
    """Why there are no figures."""
    tokens_per_second: float | None
    """Median over the steps."""
    slowest: float | None
    """Tokens a second of the slowest step."""
    fastest: float | None
    ratio: float | None
    """Tokens a second over those of the first contender that was measured."""
    share: float | None
    """Of the limit of its own arithmetic, attention whole."""
    loaded: int | None
    peak: int | None
    above_loaded: int | None
    seconds: Sequence[float]


@dataclass(frozen=True)
class Results:
    """A whole measurement."""

    kind: Kind
    work: Mapping[str, Any]
    rows: Sequence[Row]
    limits: Mapping[str, Mapping[str, Any]]
    """By dtype; empty where it was not measured."""
    command: str
    machine: Mapping[str, Any]
    date: str = field(default_factory=lambda: datetime.now(UTC).date().isoformat())
    versions: Mapping[str, str] = field(default_factory=lambda: installed())
    format: int = _FORMAT

    def write(self, folder: Path) -> None:
        """Write `results.json`, whole or not at all."""
        write_json(folder / RESULTS_FILE, asdict(self))


def read_results(file: Path) -> Results:
    """What a file holds.

    Raises:
        TsugikiError: there is none, or it is none of ours.
    """
    given = read_json(file, missing=f"no results at {file}")
    try:
        return Results(**{**given, "rows": [Row(**row) for row in given["rows"]]})
    except (KeyError, TypeError) as error:
        raise TsugikiError(f"{file} holds no results of this version: {error}") from error


def collect(
    kind: Kind,
    work: Work,
    measured: Sequence[Measured],
    limits: Mapping[str, Any],
    command: str,
    machine: dict[str, Any],
) -> Results:
    """The figures of what was measured, in its order."""
    tokens = work.tokens if kind == "train" else work.batch * NEW_TOKENS
    table = CONTENDERS if kind == "train" else GENERATORS
    base = next((_median(one, tokens) for one in measured if not one.problem), None)
    rows = [_row(one, table[one.name], tokens, base, limits) for one in measured]
    return Results(kind, asdict(work), rows, limits, command, machine)


def installed() -> dict[str, str]:
    """Versions of Python and of the packages that matter, where they are there."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _median(one: Measured, tokens: int) -> float:
    """Tokens a second of the middle step."""
    return tokens / statistics.median(one.seconds)


def _row(
    one: Measured, contender: BenchmarkEntry, tokens: int, base: float | None, limits: Mapping[str, Mapping[str, Any]]
) -> Row:
    speeds = [tokens / seconds for seconds in one.seconds] if not one.problem else []
    middle = _median(one, tokens) if speeds else None
    limit = limits.get(contender.compute_dtype or one.notes.get("base_dtype", ""), {}).get("tokens_per_second")
    return Row(
        name=one.name,
        about=contender.about,
        notes=one.notes,
        problem=one.problem,
        tokens_per_second=middle,
        slowest=min(speeds, default=None),
        fastest=max(speeds, default=None),
        ratio=middle / base if middle and base else None,
        share=middle / limit if middle and limit and not contender.trains_all else None,
        loaded=one.loaded,
        peak=one.peak,
        above_loaded=one.above_loaded,
        seconds=one.seconds,
    )
