"""Several runs with the same base and data in one process, for comparisons and sweeps.

The data are read once. The base is loaded once for each dtype that the runs need, and evaluated once; a run that trains
its weights gets a base of its own. Runs that have finished before are not repeated; an interrupted one is resumed.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tsugiki.base.identity import named_identity, why_different
from tsugiki.data.read.files import describe_data
from tsugiki.dtypes import BaseDtype
from tsugiki.errors import TsugikiError, summarise_list
from tsugiki.fast.paths import use_plain_paths
from tsugiki.io.formatting import format_duration
from tsugiki.language import _, ngettext
from tsugiki.lora.graft import ungraft
from tsugiki.lora.hold import is_grafted
from tsugiki.training.config import RunConfig
from tsugiki.training.evaluation.result import change_of_loss
from tsugiki.training.evaluation_callback import BaseResults
from tsugiki.training.memory import reset_process_peak, return_freed_memory
from tsugiki.training.model import load_run_tokenizer
from tsugiki.training.packing import PackedDataset, pack_data
from tsugiki.training.progress import RunProgress
from tsugiki.training.record import RunRecord
from tsugiki.training.resume import earlier_run
from tsugiki.training.run import STAGES, Run, Texts, choose_numbers, load_base, read_texts, started
from tsugiki.training.split_data import data_digest

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class _Base:
    """A base model that runs share, with its packed data and its results."""

    model: "PreTrainedModel"
    dtype: BaseDtype
    packed: dict[int, PackedDataset] = field(default_factory=dict)
    """Virtual tokens of a soft prompt -> the data, in rows that leave room for them."""
    results: BaseResults = field(default_factory=dict)
    """Its evaluations and samples (see `training.evaluation_callback`)."""


def run_all(runs: Mapping[str, RunConfig], progress: RunProgress | None = None) -> dict[str, RunRecord]:
    """Execute the runs that have not finished yet, one after the other, and print the result of each.

    Args:
        runs: name -> settings; all have the same base model, the same data and the same tokens.
        progress: where to show the progress; None: a new display on standard error for each run.

    Returns:
        Name -> record, in the same order.

    Raises:
        TsugikiError: a folder that holds another run, or one with other data or another base; or an error in a run,
            which the message names. Finished runs are kept.
    """
    earlier = earlier_runs(runs)
    records: dict[str, RunRecord] = {}
    texts: Texts | None = None
    base: _Base | None = None
    left = sum(not _is_finished(record) for record in earlier.values())
    done, begun = 0, time.monotonic()
    for number, (name, config) in enumerate(runs.items(), 1):
        before = earlier[name]
        if before is not None and _is_finished(before):
            records[name] = before
            continue
        with started(config, config.to_record(), resume=before is not None, progress=progress) as run:
            if texts is None:
                read_texts(run)
                texts = run.texts
            run.texts = texts
            run.display.print(_("{number} of {count}: {name}").format(number=number, count=len(runs), name=name))
            if base is not None and base.dtype != run.facts.dtype:
                base = None  # so that its memory is free before another one is loaded
            return_freed_memory()
            if base is None:
                load_base(run)
                base = _Base(run.model, run.facts.dtype, {config.virtual_tokens: run.data})
                return_freed_memory()
            reset_process_peak()
            try:
                _train_on(run, base)
            except TsugikiError as error:
                raise TsugikiError(_("{name}: {error}").format(name=name, error=error)) from error
            if is_grafted(base.model):
                ungraft(base.model)
                use_plain_paths(base.model)
            else:
                base = None  # its weights were trained
            records[name], done, left = run.record, done + 1, left - 1
            run.display.print(_result(name, run.record, time.monotonic() - begun, done, left))
    check_same_inputs(records)
    return records


def earlier_runs(runs: Mapping[str, RunConfig]) -> dict[str, RunRecord | None]:
    """Return the record of each run that its folder already holds; None if it holds none.

    Args:
        runs: name -> settings; all have the same base model, the same data and the same tokens.

    Raises:
        TsugikiError: a folder holds a run with other settings, or a finished run with other data or another base than
            the present ones.
    """
    earlier = {name: earlier_run(name, config) for name, config in runs.items()}
    finished = {name: record for name, record in earlier.items() if record and record.status == "finished"}
    if finished:
        _check_unchanged(next(iter(runs.values())), finished)
    return earlier


def check_same_inputs(records: Mapping[str, RunRecord]) -> None:
    """Check that finished runs had the same training and held-out texts, and the same base.

    Raises:
        TsugikiError: the data or the base have changed between two runs.
    """
    first, *others = records
    changed = [name for name in others if _texts(records[name]) != _texts(records[first])]
    _refuse(changed, _("the data have changed since {first} was trained").format(first=first))
    changed = [name for name in others if _is_other_base(records[first], records[name])]
    _refuse(changed, _("the base model has changed since {first} was trained").format(first=first))


def _train_on(run: Run, base: _Base) -> None:
    """Train on a base that runs share. Afterwards it is as before, but for its adapter, unless its weights train."""
    prompt = run.config.virtual_tokens
    if prompt not in base.packed:
        base.packed[prompt] = pack_data(run.config, run.texts.split, base.model, run.texts.tokenizer)
    run.model, run.data, run.base_results = base.model, base.packed[prompt], base.results
    for stage in STAGES[STAGES.index(choose_numbers) :]:
        stage(run)


def _is_finished(record: RunRecord | None) -> bool:
    return record is not None and record.status == "finished"


def _result(name: str, record: RunRecord, seconds: float, done: int, left: int) -> str:
    """Return one line with the result of a run, and the time left, estimated from the mean time of the runs so far.

    Args:
        seconds: the time of the runs so far, in this process.
        done: the number of these runs.
        left: the number of runs that are left.
    """
    before, after = record.evaluations[0], record.evaluations[-1]
    line = _("{name}: held-out loss {before:.4f} → {after:.4f} ({change:+.1%})").format(
        name=name, before=before.loss, after=after.loss, change=change_of_loss(before, after).relative
    )
    if not left:
        return line
    time_left = format_duration(seconds / done * left)
    return line + ngettext("; {count} run left, about {time}", "; {count} runs left, about {time}", left).format(
        count=left, time=time_left
    )


def _check_unchanged(config: RunConfig, finished: Mapping[str, RunRecord]) -> None:
    tokenizer = load_run_tokenizer(config)
    digest, base = data_digest(config, tokenizer), named_identity(config.model)
    digests = {name: record.data.digest for name, record in finished.items() if record.data is not None}
    changed = [name for name, before in digests.items() if before != digest]
    message = _("{data}, other data or the tokenizer has changed since they were trained")
    _refuse(changed, message.format(data=describe_data(config.data)))
    bases = {name: record.base for name, record in finished.items() if record.base is not None}
    changed = [name for name, before in bases.items() if why_different(before, base)]
    _refuse(changed, _("{model} has changed since they were trained").format(model=config.model))


def _texts(record: RunRecord) -> tuple[str, str] | None:
    return (record.data.train.fingerprint, record.data.held_out.fingerprint) if record.data is not None else None


def _is_other_base(one: RunRecord, other: RunRecord) -> bool:
    return one.base is not None and other.base is not None and bool(why_different(one.base, other.base))


def _refuse(names: list[str], why: str) -> None:
    if names:
        raise TsugikiError(
            _("{names}: {why}; delete these runs, or choose another out").format(names=summarise_list(names), why=why)
        )
