"""What the stages of a run hand on to the stages after them (see `training.run.stages`), and where the run begins."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import Tensor

from tsugiki.annotations import PreTrainedModel, PreTrainedTokenizerBase
from tsugiki.dtypes import BaseDtype
from tsugiki.io.atomic import check_writable, remove_leftovers
from tsugiki.io.locks import OWNER_FILE, sole_use
from tsugiki.io.run_folder import CHECKPOINTS, checkpoint_step, refuse_earlier_run
from tsugiki.training.choose.choices import Choices
from tsugiki.training.data.divide import Division
from tsugiki.training.data.packing import PackedDataset
from tsugiki.training.record.progress import RunProgress
from tsugiki.training.record.run_record import RecordedConfig, RunRecord
from tsugiki.training.run.resume import resumed
from tsugiki.training.settings.config import RunConfig
from tsugiki.training.step.loop import TrainingLoop
from tsugiki.training.step.setup import build_loop
from tsugiki.training.step.text_loss import StepLoss
from tsugiki.training.tools.processes import check_shared, errors_of_others, on_main, start_accelerator

if TYPE_CHECKING:
    from tsugiki.base.new_words import NewWords


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


@dataclass(frozen=True)
class Texts:
    """The tokenizer and the data of a run, which depend only on the tokenizer of its model."""

    tokenizer: PreTrainedTokenizerBase
    new_words: "NewWords | None"
    division: Division


@dataclass(frozen=True)
class Base:
    """A base model, and the data in rows for it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    data: PackedDataset
    dtype: BaseDtype
    """The dtype in which the model was loaded."""


@dataclass(frozen=True)
class Layers:
    """The layers that an adapter changes."""

    adapter_config: Any
    """The settings of the method, with the layers that were chosen."""
    head_factor: float = 1.0
    """Learning rate of the output head's B relative to that of the run."""
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Ready:
    """A run that is ready for its first step: the model is grafted, and everything is chosen."""

    choices: Choices
    loss: StepLoss
    """What a step minimises."""
    resolved: Mapping[str, Any]
    """What was chosen, for the record."""
    notes: Sequence[str]
    """Notes on this run, one sentence each; runs that share data have the notes of the data in common."""
    references: Mapping[str, Tensor] = field(default_factory=dict)
    """Of preference tuning: part of the data (training, held_out or validation) -> log-probabilities under the
    reference, [records]. Empty for a loss without a reference, and before `add_reference`."""


def loop_of(start: Start, base: Base, loss: StepLoss, choices: Choices) -> TrainingLoop:
    """Return the loop of a run whose model was made trainable. It writes no checkpoints."""
    data = base.data
    return build_loop(start.accelerator, start.config, choices, base.model, data.blocks, data.document_masking, loss)


@dataclass(frozen=True)
class Prepared:
    """A run before its first step, with all results of its stages so far."""

    start: Start
    base: Base
    ready: Ready

    def loop(self, choices: Choices | None = None) -> TrainingLoop:
        """Return the loop of the run, with its own choices or with others."""
        return loop_of(self.start, self.base, self.ready.loss, choices or self.ready.choices)
