"""Execute several runs in one process, and compare their results: named runs, or the points of a grid of settings.

The data are read once. The base is loaded once for each dtype that the runs need, and evaluated once; a run that trains
its weights gets a base of its own. Runs that have finished before are not repeated; an interrupted one is resumed.
"""

import gc
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tsugiki.base.identity import named_identity, why_different
from tsugiki.data.read.files import content_key, describe_data
from tsugiki.data.splits import parse_held_out
from tsugiki.errors import TsugikiError, summarise_list
from tsugiki.fast.paths import use_plain_paths
from tsugiki.io.atomic import check_writable
from tsugiki.io.file_names import ADAPTER_FILE, MODEL_FILES
from tsugiki.io.formatting import format_duration
from tsugiki.io.json import write_json
from tsugiki.io.locks import sole_use
from tsugiki.language import _, ngettext
from tsugiki.lora.graft import ungraft
from tsugiki.lora.hold import is_grafted
from tsugiki.training.data.read import data_digest
from tsugiki.training.measure.facts import given_facts
from tsugiki.training.record.interval import Change
from tsugiki.training.record.result import change_of_loss
from tsugiki.training.record.run_record import RunRecord, finished
from tsugiki.training.run.load import base_with_texts, load_base, load_run_tokenizer, read_texts
from tsugiki.training.run.resume import earlier_run
from tsugiki.training.run.stages import train_on
from tsugiki.training.run.start import Base, Start, Texts, started
from tsugiki.training.settings.config import RunConfig
from tsugiki.training.settings.sweep import SweepConfig
from tsugiki.training.tools.memory import reset_process_peak, return_freed_memory
from tsugiki.training.tools.processes import require_one_process

SWEEP_FILE = "sweep.json"
_FORMAT = 3
MIN_RELATIVE_GAIN = 0.005
"""A loss that is lower by less than this share is not worth more parameters."""


@dataclass(frozen=True)
class Point:
    """One of the runs of a sweep."""

    name: str
    values: dict[str, Any]
    """Setting -> value, of a point of a grid."""
    record: RunRecord

    @property
    def loss(self) -> float:
        """Held-out loss at the end, in nats per token."""
        return self.record.evaluations[-1].loss

    @property
    def file_size(self) -> int:
        """Bytes of the adapter's weights, or of the model's, which may be in several files."""
        adapter = self.record.folder() / ADAPTER_FILE
        found = [adapter] if adapter.is_file() else self.record.folder().glob(MODEL_FILES)
        return sum(path.stat().st_size for path in found)

    @property
    def retention_change(self) -> Change | None:
        """Relative change of the loss on the text of `retention_data`, if there is one."""
        retention = self.record.retention_evaluations
        return change_of_loss(retention[0], retention[-1]) if retention else None


def sweep(config: SweepConfig) -> list[Point]:
    """Execute each run that has not finished yet, and write `sweep.json` to `config.out`; return them in their order.

    A folder that holds another run or one with other data is an error, and so are several processes.
    """
    runs, out = config.runs(), Path(config.out)
    require_one_process("sweep")
    check_writable(out)
    with sole_use(out):
        records = run_all({name: settings for name, (_, settings) in runs.items()})
        points = [Point(name, values, records[name]) for name, (values, _) in runs.items()]
        write_json(out / SWEEP_FILE, {"format": _FORMAT, "points": [_result(point) for point in points]})
    return points


def _result(point: Point) -> dict[str, Any]:
    """Return the results of one run, for `sweep.json`: seconds, bytes, and losses in nats per token."""
    training, parameters = finished(point.record)
    before, after = point.record.evaluations[0], point.record.evaluations[-1]
    retention = [evaluation.loss for evaluation in point.record.retention_evaluations]
    return {
        "name": point.name,
        "values": point.values,
        "method": point.record.config.method,
        "trainable": parameters.trainable,
        "share": parameters.share,
        "file_size": point.file_size,
        "learning_rate": point.record.chosen("learning_rate"),
        "seconds": training.seconds,
        "tokens_per_second": point.record.all_tokens_per_second(),
        "peak_memory": training.peak_memory,
        "loss_before": before.loss,
        "loss": after.loss,
        "loss_interval": after.loss_interval,
        "perplexity_before": before.perplexity,
        "perplexity": after.perplexity,
        "bits_per_char": after.bits_per_char,
        "retention_losses": retention,
    }


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


def run_all(runs: Mapping[str, RunConfig]) -> dict[str, RunRecord]:
    """Execute the runs that have not finished yet, one after the other, and print the result of each.

    All have the same base model, the same data and the same tokens. Finished runs are kept if a later one has an error,
    which names it. Returns name -> record.
    """
    if any(parse_held_out(config.held_out) is None for config in runs.values()):
        raise TsugikiError("held_out is none, and runs are compared by their held-out text; hold some out")
    earlier = _earlier_runs(runs)
    records: dict[str, RunRecord] = {}
    texts: Texts | None = None
    bases: dict[int, Base] = {}
    left = sum(not _is_finished(record) for record in earlier.values())
    done, begun = 0, time.monotonic()
    for number, (name, config) in enumerate(runs.items(), 1):
        before = earlier[name]
        if before is not None and _is_finished(before):
            records[name] = before
            continue
        with started(config, resume=before is not None) as start:
            texts = texts or read_texts(start)
            start.display.print(_("{number} of {count}: {name}", number=number, count=len(runs), name=name))
            try:
                _train_with(bases, start, texts)
            except TsugikiError as error:
                raise TsugikiError("{name}: {error}", name=name, error=error) from error
            records[name], done, left = start.record, done + 1, left - 1
            start.display.print(_result_line(name, start.record, time.monotonic() - begun, done, left))
    check_same_inputs(records)
    return records


def _train_with(bases: dict[int, Base], start: Start, texts: Texts) -> None:
    """Train on the base that the runs before have left, if it has the dtype of this run, and leave it to the next run.

    `bases` has the same model under each number of virtual tokens, for which the rows leave room. Afterwards they
    have no adapter, and the plain products; `bases` is empty if the run trained the model's weights.
    """
    config, facts = start.config, given_facts(start.config, start.record, start.device)
    if any(base.dtype != facts.dtype for base in bases.values()):
        bases.clear()  # so that its memory is free before another one is loaded
    gc.collect()  # the loop of the run before
    return_freed_memory()
    prompt, loaded = config.virtual_tokens, next(iter(bases.values()), None)
    if loaded is None:
        bases[prompt] = load_base(start, facts, texts)
    elif prompt not in bases:
        bases[prompt] = base_with_texts(start, loaded.model, loaded.dtype, texts)
    base = bases[prompt]
    reset_process_peak()
    train_on(start, facts, base)
    if is_grafted(base.model):
        ungraft(base.model)
        use_plain_paths(base.model)
    else:
        bases.clear()  # its weights were trained


def _earlier_runs(runs: Mapping[str, RunConfig]) -> dict[str, RunRecord | None]:
    """Return the record of each run that its folder already holds; None if it holds none.

    It must have the same settings, and if it is finished, the data and the base must be as they were.
    """
    earlier = {name: earlier_run(name, config) for name, config in runs.items()}
    finished_runs = {name: record for name, record in earlier.items() if record and _is_finished(record)}
    if finished_runs:
        _check_unchanged(next(iter(runs.values())), finished_runs)
    return earlier


def check_same_inputs(records: Mapping[str, RunRecord]) -> None:
    """Check that finished runs had the same training and held-out texts, and the same base."""
    first, *others = records
    changed = [name for name in others if _texts(records[name]) != _texts(records[first])]
    _refuse(changed, _("the data have changed since {first} was trained", first=first))
    changed = [name for name in others if _is_other_base(records[first], records[name])]
    _refuse(changed, _("the base model has changed since {first} was trained", first=first))


def _is_finished(record: RunRecord | None) -> bool:
    return record is not None and record.status == "finished"


def _result_line(name: str, record: RunRecord, seconds: float, done: int, left: int) -> str:
    """Return one line with the result of a run, and the time left, estimated from the mean time of the runs so far.

    `seconds` is the time of the `done` runs in this process, and `left` runs are left.
    """
    before, after = record.evaluations[0], record.evaluations[-1]
    line = _(
        "{name}: held-out loss {before:.4f} → {after:.4f} ({change:+.1%})",
        name=name,
        before=before.loss,
        after=after.loss,
        change=change_of_loss(before, after).relative,
    )
    if not left:
        return line
    time_left = format_duration(seconds / done * left)
    return line + ngettext(
        "; {count} run left, about {time}", "; {count} runs left, about {time}", left, count=left, time=time_left
    )


def _check_unchanged(config: RunConfig, records: Mapping[str, RunRecord]) -> None:
    tokenizer = load_run_tokenizer(config)
    key = content_key(config.data, config.columns)
    digest, base = data_digest(config, tokenizer, key), named_identity(config.model)
    digests = {name: record.data.digest for name, record in records.items() if record.data is not None}
    changed = [name for name, before in digests.items() if before != digest]
    _refuse(
        changed,
        _("{data}, other data or the tokenizer has changed since they were trained", data=describe_data(config.data)),
    )
    bases = {name: record.base for name, record in records.items() if record.base is not None}
    changed = [name for name, before in bases.items() if why_different(before, base)]
    _refuse(changed, _("{model} has changed since they were trained", model=config.model))


def _texts(record: RunRecord) -> tuple[str | None, str] | None:
    return (record.data.digest, record.data.held_out.fingerprint) if record.data is not None else None


def _is_other_base(one: RunRecord, other: RunRecord) -> bool:
    return one.base is not None and other.base is not None and bool(why_different(one.base, other.base))


def _refuse(names: list[str], why: str) -> None:
    if names:
        raise TsugikiError(
            "{names}: {why}; delete these runs, or choose another out", names=summarise_list(names), why=why
        )
