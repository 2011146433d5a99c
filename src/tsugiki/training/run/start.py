"""Where a run begins: the processes that share it, its folder and its record so far."""

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from tsugiki.io.atomic import check_writable, remove_leftovers
from tsugiki.io.locks import OWNER_FILE, sole_use
from tsugiki.io.run_folder import CHECKPOINTS, checkpoint_step, refuse_earlier_run
from tsugiki.training.record.progress import RunProgress
from tsugiki.training.record.run_record import RecordedConfig, RunRecord
from tsugiki.training.run.resume import resumed
from tsugiki.training.settings.config import RunConfig
from tsugiki.training.tools.processes import check_shared, errors_of_others, on_main, start_accelerator

LOGS = "logs"
"""The folder in a run's folder into which trackers write."""


@dataclass(frozen=True)
class Start:
    """The settings of a run, the processes that share it, and its record, which gets the results."""

    config: RunConfig
    accelerator: Accelerator
    display: RunProgress
    record: RunRecord
    before: Mapping[str, Any]
    """The values that a run which is continued has chosen before (`resolved_settings` in its record)."""
    checkpoint: Path | None = None
    """The checkpoint to continue from."""
    overwrite: bool = False
    """Remove the run that the folder holds, before the first step."""

    @property
    def device(self) -> torch.device:
        """The device on which this process computes."""
        device: torch.device = self.accelerator.device
        return device

    @property
    def out(self) -> Path:
        """The folder of the run."""
        return Path(self.config.out)

    @property
    def in_shards(self) -> bool:
        """Whether the weights are split over the processes; a single process does not split them."""
        return self.config.shard == "fsdp" and self.accelerator.num_processes > 1

    @property
    def steps_before(self) -> int | None:
        """The steps that were done before the run got another length; None: its length is as it was."""
        return None if self.checkpoint is None or "steps" in self.before else checkpoint_step(self.checkpoint)


@contextmanager
def started(
    config: RunConfig, resume: bool = False, progress: RunProgress | None = None, overwrite: bool = False
) -> Iterator[Start]:
    """Start the processes of a run, lock its folder within the block, and find out where the run begins.

    The arguments are as for `train`.
    """
    accelerator, out = _accelerator_of(config), Path(config.out)

    def lock() -> None:
        check_writable(out)
        stack.enter_context(sole_use(out))
        remove_leftovers(out)  # of a process that was killed
        remove_leftovers(out / CHECKPOINTS)

    with errors_of_others(accelerator), ExitStack() as stack:
        display = stack.enter_context(progress or RunProgress(shown=accelerator.is_main_process))
        on_main(accelerator, lock)
        check_shared(accelerator, out / OWNER_FILE)
        record, checkpoint = start_or_resume(accelerator, config.to_record(), out, resume, overwrite)
        yield Start(config, accelerator, display, record, record.resolved_settings, checkpoint, overwrite)


def start_or_resume(
    accelerator: Accelerator, settings: dict[str, Any], out: Path, resume: bool, overwrite: bool = False
) -> tuple[RunRecord, Path | None]:
    """Return the record of the run in `out`, and the checkpoint to continue from (None: start at step 0).

    `settings` are from `to_record`. With `resume`, the folder must hold a run; without `resume` or `overwrite`, none.
    """
    if resume:
        return on_main(accelerator, lambda: resumed(settings, out))
    if not overwrite:
        on_main(accelerator, lambda: refuse_earlier_run(out))
    return on_main(accelerator, lambda: new_record(settings)), None


def new_record(settings: dict[str, Any]) -> RunRecord:
    """Return the record of a run with these settings (from `to_record`) that has not started."""
    return RunRecord(config=RecordedConfig.model_validate(settings), working_directory=os.getcwd())


def unwritten(config: RunConfig) -> Start:
    """Return the start of a run that writes nothing but the cache."""
    record = new_record(config.to_record())
    return Start(config, _accelerator_of(config), RunProgress(), record, record.resolved_settings)


def _accelerator_of(config: RunConfig) -> Accelerator:
    return start_accelerator(config.device, config.report_to, str(Path(config.out) / LOGS))
