"""Prepare the loop of a run: the settings that are `auto`, the optimiser, the schedule, and the saving interval."""

import math
import time
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from tsugiki.data.batches import Collator, StepBatches
from tsugiki.data.blocks import Blocks
from tsugiki.errors import TsugikiError, error_text
from tsugiki.fast.document_masks import DocumentMasking
from tsugiki.io.progress import ProgressDisplay
from tsugiki.language import _, counts, ngettext
from tsugiki.training.allocator import keep_freed_memory
from tsugiki.training.automatic import ResolvedConfig, resolve, total_steps, with_values
from tsugiki.training.config import LORA_PLUS, PROBE, RunConfig
from tsugiki.training.loop import TrainingLoop
from tsugiki.training.model import make_gradients
from tsugiki.training.optimizers.adamw import adamw
from tsugiki.training.optimizers.loraplus import loraplus
from tsugiki.training.optimizers.muon import muon
from tsugiki.training.packing import PackedDataset
from tsugiki.training.processes import on_main
from tsugiki.training.rate_probe import ROWS as PROBE_ROWS
from tsugiki.training.rate_probe import Probe, probe, trial_settings
from tsugiki.training.timing import rows_in_time, seconds_per_step

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_AUTOMATIC = ("batch_size", "learning_rate")
"""The settings that can be `auto`."""
_CHECKPOINTS_PER_RUN = 10
_LOSS_CURVE_POINTS = 500


def prepare_loop(
    accelerator: Accelerator,
    config: ResolvedConfig,
    model: "PreTrainedModel",
    blocks: Blocks,
    document_masking: DocumentMasking,
) -> TrainingLoop:
    """Return the loop of a prepared model, which is on the accelerator's device. It writes no checkpoints yet.

    Raises:
        TsugikiError: an unknown schedule, or an optimiser that is not available.
    """
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    collate = Collator(document_masking, next(model.parameters()).dtype)
    batches = StepBatches(blocks, collate, config.batch_size, config.seed)
    optimizer = _optimizer(model, config)
    steps = total_steps(config, len(blocks))
    return TrainingLoop(
        accelerator=accelerator,
        model=model,
        gradients=make_gradients(model, config, batches, accelerator),
        optimizer=optimizer,
        schedule=_schedule(optimizer, config, steps),
        steps=steps,
        max_grad_norm=config.max_grad_norm,
        log_steps=max(1, steps // _LOSS_CURVE_POINTS),
        save_steps=config.save_steps or max(1, steps // _CHECKPOINTS_PER_RUN),
    )


def resolved_config(
    accelerator: Accelerator,
    config: RunConfig,
    model: "PreTrainedModel",
    data: PackedDataset,
    chosen: Mapping[str, Any],
    started: float,
) -> tuple[ResolvedConfig, dict[str, Any]]:
    """Choose the settings that are `auto` (see `train.automatic`), and the number of steps.

    Args:
        accelerator: the device, and the processes that share the work.
        config: the settings as they were given.
        model: the prepared model.
        data: the packed data.
        chosen: the values that a resumed run has chosen before it was interrupted.
        started: when the run began, in seconds of `time.monotonic`.

    Returns:
        The settings, and setting -> value for those that were chosen here.

    Raises:
        TsugikiError: more processes than rows in a step, or `minutes` is too short for one step.
    """

    def measure() -> int:
        assert config.minutes is not None
        threads = torch.get_num_threads() if accelerator.device.type == "cpu" else 1
        at_once = min(threads * accelerator.num_processes, len(data.blocks))
        trial = with_values(config, batch_size=at_once, learning_rate=1.0, max_steps=1)
        loop = prepare_loop(accelerator, trial, model, data.blocks, data.document_masking)
        per_row = seconds_per_step(loop) / at_once
        left = config.minutes * 60 - (time.monotonic() - started)
        return on_main(accelerator, lambda: rows_in_time(left, per_row, data))  # all processes use the main one's value

    resolved = resolve(config, model, len(data.blocks), data.blocks.block_size, chosen, measure)
    rows = min(resolved.batch_size, len(data.blocks))
    on_main(accelerator, partial(_check_rows, accelerator.num_processes, rows))
    automatic = {name: getattr(resolved, name) for name in _AUTOMATIC if isinstance(getattr(config, name), str)}
    return resolved, {**automatic, "steps": total_steps(resolved, len(data.blocks))}


def measure_rate(
    accelerator: Accelerator,
    config: ResolvedConfig,
    model: "PreTrainedModel",
    data: PackedDataset,
    display: ProgressDisplay,
) -> Probe:
    """Measure the learning rate (see `train.rate_probe`).

    Args:
        accelerator: the device, and the processes that share the work.
        config: the settings, with the learning rate of the formula.
        model: the prepared model.
        data: the packed data.
        display: where to show the progress.

    Raises:
        TsugikiError: the loss rises at the lowest rate of the test.
    """
    loop = prepare_loop(accelerator, trial_settings(config), model, data.blocks, data.document_masking)
    with display.stage(_("measuring learning rates"), 2 * PROBE_ROWS) as advance:
        return probe(loop, config.learning_rate, advance)


def choices(resolved: Mapping[str, Any], given: Mapping[str, Any], measured: bool) -> list[str]:
    """Return one line with the values that were chosen for settings that are `auto`; empty if there are none.

    Args:
        resolved: the settings that were chosen, with the number of steps.
        given: the settings as they were given.
        measured: a range test has chosen the learning rate.
    """
    names = {"batch_size": _("batch size"), "learning_rate": _("learning rate")}
    chosen = [f"{label} {resolved[name]:g}" for name, label in names.items() if isinstance(given[name], str)]
    if not chosen:
        return []
    if measured:
        chosen[-1] += _(" (measured on some rows)")
    elif given["learning_rate"] == PROBE:
        chosen[-1] = _("the learning rate will be measured")
    return [
        _("chosen for {steps}: {chosen}").format(steps=counts.steps(resolved["steps"]), chosen=_(", ").join(chosen))
    ]


def _check_rows(processes: int, rows: int) -> None:
    """Check that each process has at least one row of a step."""
    if processes > rows:
        message = ngettext(
            "{processes} processes cannot share an optimiser step of {rows} row: start fewer processes, or use a "
            "larger --batch-size or more data",
            "{processes} processes cannot share an optimiser step of {rows} rows: start fewer processes, or use a "
            "larger --batch-size or more data",
            rows,
        )
        raise TsugikiError(message.format(processes=processes, rows=rows))


def _optimizer(model: "PreTrainedModel", config: ResolvedConfig) -> torch.optim.Optimizer:
    """Return the optimiser of the trained parameters."""
    if config.method == LORA_PLUS:
        return loraplus(model, config)
    return muon(model, config) if config.optimizer == "muon" else adamw(model, config)


def _schedule(optimizer: torch.optim.Optimizer, config: ResolvedConfig, steps: int) -> LRScheduler:
    """Return the learning rate schedule.

    Raises:
        TsugikiError: transformers has no such schedule, or it depends on more than the number of the step.
    """
    warmup = math.ceil(config.warmup_ratio * steps)
    if config.lr_scheduler_type == "linear":  # the default, without the imports of transformers' schedules
        return LambdaLR(optimizer, partial(linear_share, warmup=warmup, steps=steps))
    from transformers import get_scheduler  # imports PEFT and bitsandbytes where they are installed: seconds

    decay = math.ceil((config.decay_ratio or 0) * steps)
    options = {"num_decay_steps": decay, "decay_type": "linear"} if decay else None
    try:
        schedule = get_scheduler(config.lr_scheduler_type, optimizer, warmup, steps, options)
    except (ValueError, TypeError) as error:
        raise TsugikiError(f"lr_scheduler_type: {error_text(error)}") from error
    if not isinstance(schedule, LambdaLR):
        raise TsugikiError(
            _("lr_scheduler_type {lr_scheduler_type} depends on evaluations; choose another one").format(
                lr_scheduler_type=config.lr_scheduler_type
            )
        )
    return schedule


def linear_share(step: int, *, warmup: int, steps: int) -> float:
    """Return the learning rate at a step (from 0), relative to its peak, in transformers' schedule "linear"."""
    if step < warmup:
        return step / max(1, warmup)
    return max(0.0, (steps - step) / max(1, steps - warmup))
