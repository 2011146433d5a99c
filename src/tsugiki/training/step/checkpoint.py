"""Checkpoints: the trained weights, the optimiser's state and the progress of a run, which resumes exactly from them.

The order of the rows and the dropout masks follow from the seed and the step (see `data.blocks` and
`training.step.gradients`), so no state of a random generator is stored, and a run can be resumed on any number of
processes.

Everything is safetensors and JSON, and nothing is pickled. A checkpoint is a folder `checkpoint-STEP` with

    the adapter or model    as `training.model.trainable.save_trained` writes it
    optimizer.safetensors   tensors of the optimiser's state, INDEX.NAME for each parameter
    training.json           the rest of the optimiser's state, the schedule, and the progress of the run
    manifest.json           sizes and digests of these files, and the record of the run at this step: its settings, the
                            fingerprints of base and data, versions, evaluations and samples

The manifest is written last and checked before anything of the checkpoint is used.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tsugiki.errors import TsugikiError, summarise_list, warn_caller
from tsugiki.io.atomic import remove_folder
from tsugiki.io.digests import read_manifest, write_manifest
from tsugiki.io.json import read_json, write_json
from tsugiki.io.run_folder import checkpoint_step, checkpoints
from tsugiki.language import _
from tsugiki.training.record.run_record import LossPoint, PreferencePoint

_OPTIMIZER, _TRAINING = "optimizer.safetensors", "training.json"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files are as they were written."""

    folder: Path
    record: dict[str, Any]
    """The record of the run at this step, as in `run.json`."""

    @property
    def step(self) -> int:
        """The number of optimiser steps that were done."""
        return checkpoint_step(self.folder)


@dataclass
class Progress:
    """The progress of a run."""

    step: int = 0
    """Number of optimiser steps done."""
    nll: float = 0.0
    """Summed loss of all target tokens so far, in nats."""
    tokens: int = 0
    """Number of target tokens so far, over all processes."""
    seconds: float = 0.0
    """Time spent in steps, without evaluating, sampling and saving."""
    loss_curve: list[LossPoint] = field(default_factory=list)
    unlogged: list[float] = field(default_factory=list)
    """Losses of the steps since the last point of the loss curve."""
    preference_curve: list[PreferencePoint] = field(default_factory=list)
    unlogged_figures: list[list[float]] = field(default_factory=list)
    """Figures of the loss (see `preference_loss.AnswerLoss`) in the steps since then; none for texts."""
    callbacks_pending: bool = False
    """Whether the run was interrupted before all callbacks of the last step had been called."""

    best_step: int | None = None
    """The step that is kept so far, by `training.choose.decisions`; its checkpoint is not deleted."""
    stopped: bool = False
    """Whether a callback has ended the run before its last step."""

    @property
    def is_best(self) -> bool:
        """Whether the last step is the one with the lowest loss on the validation text."""
        return self.best_step == self.step

    @property
    def last_loss(self) -> float:
        """Loss of the last step, in nats; the mean of several steps if only this was logged."""
        if self.unlogged:
            return self.unlogged[-1]
        return self.loss_curve[-1].loss if self.loss_curve else 0.0

    @property
    def loss(self) -> float:
        """Mean loss per target token over the whole run, in nats."""
        return self.nll / max(self.tokens, 1)

    @property
    def tokens_per_second(self) -> float:
        """Target tokens per second of training."""
        return self.tokens / self.seconds if self.seconds else 0.0


def save_training_state(
    folder: Path,
    optimizer: Mapping[str, Any],
    schedule: Mapping[str, Any],
    progress: Mapping[str, Any],
    record: Mapping[str, Any],
) -> None:
    """Write the training state of a checkpoint, whose adapter or model is in `folder` already, and then its manifest.

    `optimizer` and `schedule` are state dicts, `progress` has the fields of `Progress`, and `record` is as in
    `run.json`.
    """
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {}
    for index, entries in optimizer["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{name}"] = value.contiguous()
            else:
                plain[f"{index}.{name}"] = value
    save_file(tensors, folder / _OPTIMIZER)
    write_json(
        folder / _TRAINING,
        {
            "optimizer": {"state": plain, "param_groups": optimizer["param_groups"]},
            "schedule": dict(schedule),
            "progress": dict(progress),
        },
    )
    write_manifest(folder, {"record": dict(record)})


def load_training_state(folder: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Read the state dicts of the optimiser and of the schedule, and the fields of `Progress`."""
    fields = read_json(
        folder / _TRAINING,
        missing=_("{folder} is not a checkpoint: it has no {file}", folder=folder, file=_TRAINING),
    )
    optimizer: dict[str, Any] = {"state": {}, "param_groups": fields["optimizer"]["param_groups"]}
    for key, value in {**_load(folder / _OPTIMIZER), **fields["optimizer"]["state"]}.items():
        index, _dot, name = key.partition(".")
        optimizer["state"].setdefault(int(index), {})[name] = value
    return optimizer, fields["schedule"], fields["progress"]


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """Return the newest checkpoint in a folder that is not damaged; None if there are no checkpoints.

    Newer ones, which are damaged, are renamed to `checkpoint-STEP.damaged`, and a warning names them. If all of them
    are damaged, none is renamed, and this is an error.
    """
    damaged: dict[Path, str] = {}
    for path in reversed(checkpoints(folder)):
        try:
            intact = Checkpoint(path, read_manifest(path)["record"])
        except TsugikiError as error:
            damaged[path] = str(error)
            continue
        for other, problem in damaged.items():
            _set_aside(other)
            warn_caller(_("{problem}; the run continues from {name}", problem=problem, name=path.name))
        return intact
    if damaged:
        raise TsugikiError(
            "no checkpoint in {folder} can be used: {values}; remove them to train again from the first step",
            folder=folder,
            values=summarise_list(list(damaged.values())),
        )
    return None


def keep_newest(folder: Path, count: int, best: int | None = None) -> None:
    """Delete all checkpoints in a folder except the newest `count`, and that of the step `best`."""
    found = checkpoints(folder)
    for path in found[: max(len(found) - count, 0)]:
        if checkpoint_step(path) != best:
            with suppress(TsugikiError):
                remove_folder(path)


def _set_aside(folder: Path) -> None:
    """Rename a damaged checkpoint, so that it is not counted as one."""
    aside = folder.with_name(f"{folder.name}.damaged")
    try:
        if aside.exists():
            remove_folder(aside)
        folder.rename(aside)
    except FileNotFoundError:  # another process of the run has renamed it
        pass
    except OSError as error:
        raise TsugikiError(
            "{folder} is damaged and cannot be renamed: {strerror}", folder=folder, strerror=error.strerror or error
        ) from error


def _load(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise TsugikiError(
            "{path} is broken: {error}; delete {parent} to continue from an earlier one",
            path=path,
            error=error,
            parent=path.parent,
        ) from error
