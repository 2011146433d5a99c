"""Several runs with the same base and data in one process, for comparisons and sweeps.

The data are read once. The base is loaded once for each dtype that the runs need, and evaluated once; a run that trains
its weights gets a base of its own. Runs that have finished before are not repeated; an interrupted one is resumed.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from accelerate import Accelerator

from tsugiki.dtypes import BaseDtype
from tsugiki.errors import TsugikiError
from tsugiki.fast.paths import use_plain_paths
from tsugiki.io.formatting import format_duration
from tsugiki.language import _, ngettext
from tsugiki.lora.graft import ungraft
from tsugiki.lora.hold import is_grafted
from tsugiki.training.allocator import return_freed_memory
from tsugiki.training.config import RunConfig
from tsugiki.training.evaluation.result import change_of_loss
from tsugiki.training.evaluation_callback import BaseResults
from tsugiki.training.memory import reset_process_peak
from tsugiki.training.model import load_dtype
from tsugiki.training.packing import PackedDataset, pack_data, virtual_tokens
from tsugiki.training.progress import RunProgress
from tsugiki.training.record import RunRecord
from tsugiki.training.resume import start_or_resume
from tsugiki.training.run import RunData, accelerator_of, load_base, load_data, run, sole_run
from tsugiki.training.workflows.earlier import check_same_inputs, earlier_runs

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class _Base:
    """A base model that runs share, with its packed data and its results."""

    dtype: BaseDtype
    model: "PreTrainedModel"
    packed: dict[int, PackedDataset] = field(default_factory=dict)
    """Virtual tokens of a soft prompt -> the data, in rows that leave room for them."""
    results: BaseResults = field(default_factory=dict)
    """Its evaluations and samples (see `train.evaluation_callback`)."""
    is_trained: bool = False
    """Whether a run has changed its weights."""


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
    data: RunData | None = None
    base: _Base | None = None
    left = sum(not _is_finished(record) for record in earlier.values())
    done, started = 0, time.monotonic()
    for number, (name, config) in enumerate(runs.items(), 1):
        before = earlier[name]
        if before is not None and _is_finished(before):
            records[name] = before
            continue
        accelerator, out = accelerator_of(config), Path(config.out)
        with progress or RunProgress() as display, sole_run(accelerator, out):
            data = data or load_data(accelerator, config, display)
            display.print(_("{number} of {count}: {name}").format(number=number, count=len(runs), name=name))
            dtype = load_dtype(config, accelerator.device)
            if base is None or base.dtype != dtype or base.is_trained:
                base = None  # so that its memory is free before another one is loaded
                return_freed_memory()
                base = _Base(dtype, load_base(accelerator, config, data))
            return_freed_memory()
            reset_process_peak()
            try:
                records[name] = _run(accelerator, config, data, base, before is not None, display)
            except TsugikiError as error:
                raise TsugikiError(_("{name}: {error}").format(name=name, error=error)) from error
            done, left = done + 1, left - 1
            display.print(_result(name, records[name], time.monotonic() - started, done, left))
    check_same_inputs(records)
    return records


def _run(
    accelerator: Accelerator, config: RunConfig, data: RunData, base: _Base, resume: bool, display: RunProgress
) -> RunRecord:
    """Start or resume one run. Afterwards the base is as before, unless its weights were trained."""
    prompt = virtual_tokens(config)
    if prompt not in base.packed:
        base.packed[prompt] = pack_data(config, data.split, base.model, data.tokenizer)
    record, checkpoint = start_or_resume(accelerator, config.to_record(), Path(config.out), resume)
    run(
        accelerator,
        config,
        base.model,
        data.tokenizer,
        base.packed[prompt],
        record,
        checkpoint,
        display,
        base_results=base.results,
    )
    if is_grafted(base.model):
        ungraft(base.model)
        use_plain_paths(base.model)
    else:
        base.is_trained = True
    return record


def _is_finished(record: RunRecord | None) -> bool:
    return record is not None and record.status == "finished"


def _result(name: str, record: RunRecord, seconds: float, done: int, left: int) -> str:
    """Return one line with the result of a run, and the time left, estimated from the mean time of the runs so far.

    Args:
        name: the name of the run.
        record: its record.
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
