"""Run one benchmark: choose the entries, measure them, and write the results."""

from collections.abc import Callable, Mapping

from benchmarks.figures import this_machine
from benchmarks.models import read_model_config
from benchmarks.speed.entries import (
    ALL_ENTRIES,
    DEFAULT_ENTRIES,
    LIMIT_ENTRY,
    PREFERENCE_ENTRIES,
    TRAINING_ENTRIES,
    BenchmarkEntry,
)
from benchmarks.speed.results import Results, collect
from benchmarks.speed.runner import Measurement, measure
from benchmarks.speed.workload import STEPS, Workload
from tsugiki.errors import TsugikiError
from tsugiki.io.formatting import format_size
from tsugiki.model.meta import meta_model
from tsugiki.training.tools import memory


def run_benchmark(
    entries: Mapping[str, BenchmarkEntry],
    workload: Workload,
    rounds: int,
    command: str,
    show: Callable[[str], None],
    steps: int = STEPS,
) -> Results:
    """Measure the entries and the machine's limit, in `rounds` blocks of `steps` counted steps."""
    config = read_model_config(workload.model)
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    if context and workload.length > context:
        raise TsugikiError(f"--length is {workload.length}, but the context of {workload.model} is {context} tokens")
    limit = {} if workload.prompt else {"limit": LIMIT_ENTRY}  # that of pairs is not known
    parameters = sum(weight.numel() for weight in meta_model(config).parameters())
    skipped = {name: reason for name, entry in entries.items() if (reason := _why_too_large(entry, parameters))}
    measurable = {name: entry for name, entry in entries.items() if name not in skipped}
    if not measurable:
        raise TsugikiError(f"no entry can be measured: {'; '.join(skipped.values())}")
    measured = measure({**measurable, **limit}, workload, rounds, show, steps)
    found = {measurement.name: measurement for measurement in measured}
    found |= {name: Measurement(name, problem=reason) for name, reason in skipped.items()}
    measurements, limits = [found[name] for name in entries], found["limit"].limits if limit else {}
    machine = this_machine()
    results = collect(workload, workload.amount, entries, measurements, limits, command, machine)
    if not any(row.tokens_per_second for row in results.rows):
        problems = "; ".join(f"{row.name}: {row.problem}" for row in results.rows)
        raise TsugikiError(f"no entry could be measured: {problems}")
    return results


def choose_entries(names: str | None, preference: bool = False) -> dict[str, BenchmarkEntry]:
    """Return the entries with these names, "a,b" or "all" (`ALL_ENTRIES`), in the given order.

    Without names, they are the default entries.

    `preference`: the entries are those that learn preferences.
    """
    known = PREFERENCE_ENTRIES if preference else TRAINING_ENTRIES
    chosen = [name.strip() for name in (names or "").split(",") if name]
    if names == "all" or (preference and not chosen):
        chosen = list(known if preference else ALL_ENTRIES)
    if unknown := [name for name in chosen if name not in known]:
        raise TsugikiError(f"unknown entry {', '.join(map(repr, unknown))}; choose from {', '.join(known)}")
    return {name: known[name] for name in chosen or DEFAULT_ENTRIES}


def _why_too_large(entry: BenchmarkEntry, parameters: int) -> str | None:
    """Return the reason why this entry cannot hold the model in memory, or None if it can."""
    free, needed = memory.available(), parameters * entry.bytes_per_parameter
    if free is not None and needed > free:
        return f"not enough memory: {format_size(needed)} for the weights, {format_size(free)} free"
    return None
