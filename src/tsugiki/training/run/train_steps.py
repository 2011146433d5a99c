"""The stage of a run in which it trains: its loop with evaluations and checkpoints, and restarts with a lower rate."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from tsugiki.annotations import PreTrainedModel
from tsugiki.dtypes import BaseDtype
from tsugiki.errors import TsugikiError, warn_caller
from tsugiki.fast.recomputation import recomputed_blocks
from tsugiki.io.atomic import WriteError, new_folder
from tsugiki.io.digests import read_manifest
from tsugiki.io.file_names import MANIFEST_FILE
from tsugiki.io.json import flat
from tsugiki.io.progress import Detail
from tsugiki.io.run_folder import CHECKPOINTS, checkpoint_step, checkpoints, remove_run
from tsugiki.language import _, counts
from tsugiki.lora.hold import is_grafted
from tsugiki.native import is_compiled
from tsugiki.training.choose.choices import describe_choices
from tsugiki.training.model.sharding import split_optimizer_state, whole_model, whole_optimizer_state
from tsugiki.training.model.trainable import (
    NARROW,
    load_trained,
    restore_values,
    save_trained,
    shard_model,
    trained_values,
    width_of,
)
from tsugiki.training.record.run_record import LossPoint, PreferencePoint, Restart, RunRecord
from tsugiki.training.run.evaluation_callback import EvaluationCallback
from tsugiki.training.run.start import Base, Ready, Start, loop_of
from tsugiki.training.settings.config import AUTO
from tsugiki.training.step.checkpoint import Progress, keep_newest, load_training_state, save_training_state
from tsugiki.training.step.loop import Callback, TrainingLoop
from tsugiki.training.tools.processes import check_shared, on_main

_KEPT_CHECKPOINTS = 2


LOWER = 1 / 3
"""Factor on the learning rate when a run starts again."""
MOST_RESTARTS = 2
_RISE = 1.2  # of the mean loss of the last steps, relative to that of the first ones
_FEWEST_STEPS, _FEWEST_ROWS = 3, 12  # for the means; the losses of single rows differ from each other


class RateTooHighError(Exception):
    """The run begins again with a lower rate. The message says why, for the log of the run."""

    def __init__(self, step: int) -> None:
        super().__init__(_("the training loss had risen by more than 20 % at step {step}", step=step))
        self.step = step


@dataclass(frozen=True)
class DivergenceCheck(Callback):
    """Ends a run that diverges with a `RateTooHighError`."""

    rows: int
    """Rows of an optimiser step."""

    def on_step_end(self, loop: TrainingLoop) -> None:
        """Compare the losses of the last steps with those of the first ones."""
        if diverges([point.loss for point in loop.progress.loss_curve], self.rows):
            raise RateTooHighError(loop.progress.step)


def diverges(losses: Sequence[float], rows: int) -> bool:
    """Return whether the mean loss of the last steps is more than 20 % above that of the first ones.

    `losses` are those of all steps so far, and `rows` are the rows of an optimiser step.
    """
    count = max(_FEWEST_STEPS, math.ceil(_FEWEST_ROWS / rows))
    return len(losses) >= 2 * count and sum(losses[-count:]) > _RISE * sum(losses[:count])


def train_steps(start: Start, base: Base, ready: Ready) -> None:
    """Train the model in place. A run whose loss rises begins again with a lower learning rate."""
    model, record, checkpoint, choices = base.model, start.record, start.checkpoint, ready.choices
    initial = trained_values(model) if _keeps_start(model, start.in_shards) else {}
    if checkpoint is not None:
        load_trained(model, checkpoint)
    if start.in_shards:
        shard_model(model, start.config, start.device)
    for line in (*_header(start, base, ready), *_slow_dtypes(start.device, base.dtype, ready.resolved)):
        start.display.print(line)
    if start.overwrite:
        on_main(start.accelerator, lambda: remove_run(start.out))
    if start.config.report_to:
        start.accelerator.init_trackers("tsugiki", config=flat(record.config.to_dict()))
    with advice_to_resume(start.out):
        while True:
            loop = _loop_with_callbacks(start, base, replace(ready, choices=choices), initial)
            if checkpoint is not None:
                _load_training_state(loop, checkpoint, is_longer=start.steps_before is not None)
            if start.accelerator.is_main_process:
                record.write(start.out)
            try:
                loop.run()
                break
            except RateTooHighError as error:
                checkpoint = None
                start.display.print(
                    _("{error}, so the run begins again with a third of the learning rate", error=error)
                )
                choices = replace(choices, learning_rate=_lower_rate(record, error.step, choices.learning_rate))
                restore_values(model, initial)
                on_main(start.accelerator, lambda: keep_newest(start.out / CHECKPOINTS, 0))
    for tracker in start.accelerator.trackers:
        tracker.finish()


@contextmanager
def advice_to_resume(out: Path) -> Iterator[None]:
    """Add to the error of a full disk how to continue the run in `out`, and which checkpoint is kept."""
    try:
        yield
    except WriteError as error:
        saved = checkpoints(out / CHECKPOINTS)
        if saved:
            raise WriteError(
                "{error}; the checkpoint of step {step} is kept: continue with {flag:resume}",
                error=error,
                step=checkpoint_step(saved[-1]),
            ) from error
        raise WriteError(
            "{error}; no checkpoint was written, so {flag:resume} begins at the first step", error=error
        ) from error


def _keeps_start(model: PreTrainedModel, in_shards: bool) -> bool:
    """Return whether the values before the first step are copied: those of an adapter, or of a narrow model."""
    return is_grafted(model) or (not in_shards and width_of(model) < NARROW)


def _loop_with_callbacks(start: Start, base: Base, ready: Ready, initial: dict[str, Tensor]) -> TrainingLoop:
    """Return the loop of a run, which evaluates and writes checkpoints, and say what was chosen.

    `initial` has the trained values before the first step; empty: they are never restored.
    """
    record, choices = start.record, ready.choices
    for line in describe_choices(record.resolved_settings):
        start.display.print(Detail(line))
    loop = loop_of(start, base, ready.loss, choices)
    record.recomputed_blocks = recomputed_blocks(loop.gradients.computing)
    record.micro_batch_size = choices.micro_batch_size
    loop.save = partial(_save_checkpoint, start, base)
    restore = partial(_restore, start.accelerator, base.model, start.out / CHECKPOINTS)
    loop.callbacks.append(EvaluationCallback(start, base, ready, restore, initial))
    can_restart = start.config.learning_rate == AUTO and bool(initial)
    if can_restart and len(record.restarts) < MOST_RESTARTS:
        loop.callbacks.append(DivergenceCheck(choices.batch_size))
    return loop


def _lower_rate(record: RunRecord, step: int, before: float) -> float:
    """Add a restart after a step to the record, and return the lower learning rate."""
    rate = float(f"{before * LOWER:.2g}")
    record.restarts.append(Restart(step=step, learning_rate=before))
    record.resolved_settings["learning_rate"] = rate
    record.forget_after(-1)
    record.loss_curve.clear()
    record.preference_curve.clear()
    return rate


def _save_checkpoint(start: Start, base: Base, loop: TrainingLoop) -> None:
    is_main, folder = loop.accelerator.is_main_process, start.out / CHECKPOINTS
    trained, optimizer = whole_model(loop.model, keep=is_main), whole_optimizer_state(loop.optimizer, keep=is_main)

    def write() -> None:
        with (
            start.display.stage(_("saving"), None),
            new_folder(folder / f"checkpoint-{loop.progress.step}", replace=True) as temporary,
        ):
            has_chats = base.data.summary.learns_conversations
            save_trained(trained, base.tokenizer, temporary, with_template=has_chats)
            progress = asdict(loop.progress) | {
                "loss_curve": [point.model_dump() for point in loop.progress.loss_curve],
                "preference_curve": [point.model_dump() for point in loop.progress.preference_curve],
                "scaler": loop.gradients.scaler.state_dict(),
            }
            save_training_state(temporary, optimizer, loop.schedule.state_dict(), progress, start.record.to_json())
        keep_newest(folder, _KEPT_CHECKPOINTS, loop.progress.best_step)

    on_main(loop.accelerator, write)


def _restore(accelerator: Accelerator, model: PreTrainedModel, folder: Path, step: int) -> bool:
    """Restore the trained weights of a step; return False, on all processes, if its checkpoint is damaged."""
    checkpoint = folder / f"checkpoint-{step}"

    def is_intact() -> bool:
        try:
            read_manifest(checkpoint)
        except TsugikiError as error:
            warn_caller(_("{error}; the last step is kept instead of step {step}", error=error, step=step))
            return False
        return True

    if not on_main(accelerator, is_intact):
        return False
    check_shared(accelerator, checkpoint / MANIFEST_FILE)
    load_trained(model, checkpoint)
    return True


def _load_training_state(loop: TrainingLoop, folder: Path, is_longer: bool) -> None:
    """Load the state of the optimiser, the schedule and the progress; `is_longer`: the run has another length now."""
    optimizer, schedule, progress = load_training_state(folder)
    loop.optimizer.load_state_dict(split_optimizer_state(loop.optimizer, optimizer))
    loop.schedule.load_state_dict(schedule)
    if loop.open_schedule is not None:
        loop.steps = loop.open_schedule.steps
    if scaler := progress.pop("scaler", {}):
        loop.gradients.scaler.load_state_dict(scaler)
    curve = [LossPoint.model_validate(point) for point in progress.pop("loss_curve")]
    answers = [PreferencePoint.model_validate(point) for point in progress.pop("preference_curve", [])]
    loop.progress = Progress(**progress, loss_curve=curve, preference_curve=answers)
    if loop.progress.step < loop.steps and is_longer:
        loop.progress.stopped = False
        # The state of the optimiser has the rate of the former schedule, which is 0 at its end.
        assert isinstance(loop.schedule, LambdaLR)
        factors = zip(loop.optimizer.param_groups, loop.schedule.base_lrs, loop.schedule.lr_lambdas, strict=True)
        for group, rate, factor in factors:
            group["lr"] = rate * factor(loop.progress.step)


def _header(start: Start, base: Base, ready: Ready) -> Iterator[str]:
    """Yield what trains, on which data, and the notes on the data and the run."""
    parameters, summary, answers = start.record.parameters, base.data.summary, base.data.answers
    assert parameters is not None
    is_paired = bool(answers) and answers["training"].preferences.size == 2
    unit = counts.pairs if is_paired else counts.examples if summary.learns_answers else counts.documents
    learned, kept = summary.train, summary.held_out
    learns = _("{model} learns from {documents} ({characters})")
    if kept.documents:
        learns = _(
            "{model} learns from {documents} ({characters}); kept aside to test the model: {other} ({other_characters})"
        )
    yield learns.format(
        model=Path(start.config.model).resolve().name,
        documents=unit(learned.documents),
        characters=counts.characters(learned.characters),
        other=unit(kept.documents),
        other_characters=counts.characters(kept.characters),
    )
    message = _(
        "{trainable:,} of {total:,} parameters train ({share:.2%}), by {tokens}, in {rows} of {block_size}",
        trainable=parameters.trainable,
        total=parameters.total,
        share=parameters.share,
        tokens=counts.tokens(summary.target_tokens_per_epoch),
        rows=counts.rows(summary.blocks),
        block_size=summary.block_size,
    )
    yield Detail(message)
    yield from base.data.notes
    yield from ready.notes


def _slow_dtypes(device: torch.device, dtype: BaseDtype, resolved: Mapping[str, Any]) -> Iterator[str]:
    """Yield notes on dtypes in which a processor is slow."""
    if device.type != "cpu":
        return
    if resolved.get("compute_dtype") == "fp16":  # of a base, `graft` warns
        yield _("processors are slow in fp16; bf16 or fp32 is faster here")
    if dtype not in ("bf16", "fp16", "fp32") and not is_compiled():
        yield _(
            "Tsugiki was installed without a C compiler, so a base in {dtype} is slower than it could be; install "
            "a compiler, then Tsugiki again",
            dtype=dtype,
        )
