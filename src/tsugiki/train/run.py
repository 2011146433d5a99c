"""One run: from a config, data and a base model to a folder that holds the trained adapter or model.

train
  start_accelerator       device and processes
  sole_run                lock the folder of the run
  start_or_resume         the record, and the checkpoint to continue from
  load                    tokenizer -> data -> model -> packed data
  run
    prepare_model         graft the adapter (see `train.model`)
    shard_model           split the weights over the processes, if the settings say so
    prepare_loop          gradients, optimiser, schedule
    TrainingLoop.run      the loop; `EvaluationCallback` evaluates, samples and writes `run.json`
    save_trained          the adapter's or the model's files
"""

import math
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from tsugiki.base.checks import code_digest
from tsugiki.base.identity import identity_of, why_different
from tsugiki.base.loading import load_model, load_tokenizer
from tsugiki.base.new_words import NewWords, add_rows, add_words, read_words
from tsugiki.base.quantization import count_parameters
from tsugiki.base.resolve import settings_folder
from tsugiki.data.batches import StepBatches
from tsugiki.data.blocks import Blocks
from tsugiki.data.collator import Collator
from tsugiki.errors import TsugikiError, error_text, summarise_list
from tsugiki.fast.document_masks import DocumentMasking
from tsugiki.io.atomic import WriteError, check_writable, new_folder, remove_leftovers
from tsugiki.io.file_names import ADAPTER_FILE, MANIFEST_FILE, MODEL_FILE, RECORD_FILE
from tsugiki.io.locks import sole_use
from tsugiki.io.progress import ProgressDisplay
from tsugiki.lora.graft import is_grafted
from tsugiki.train.allocator import keep_freed_memory
from tsugiki.train.automatic import ResolvedConfig, resolve, total_steps, with_values
from tsugiki.train.checkpoint import (
    checkpoints,
    keep_newest,
    load_training_state,
    newest_checkpoint,
    save_training_state,
)
from tsugiki.train.config import AUTO, LORA_PLUS, RunConfig
from tsugiki.train.divergence import (
    LOWER,
    MOST_RESTARTS,
    DivergedError,
    DivergenceCheck,
    restore_values,
    trained_values,
)
from tsugiki.train.evaluation_callback import EvaluationCallback
from tsugiki.train.loop import TrainingLoop
from tsugiki.train.model import (
    load_dtype,
    load_trained,
    make_gradients,
    prepare_model,
    save_trained,
    shard_model,
    trained_tokens,
)
from tsugiki.train.optimizers.adamw import adamw
from tsugiki.train.optimizers.loraplus import loraplus
from tsugiki.train.optimizers.muon import muon
from tsugiki.train.preparation import DatasetSplit, PackedDataset, pack_data, read_data
from tsugiki.train.processes import check_agreement, errors_of_others, main_first, on_main, start_accelerator
from tsugiki.train.progress import RunProgress
from tsugiki.train.record import (
    DataSummary,
    LossPoint,
    Parameters,
    RecordedBase,
    Restart,
    RunRecord,
    describe_machine,
    library_versions,
    new_record,
    parse_record,
    read_record,
)
from tsugiki.train.sharding import split_optimizer_state, whole_model, whole_optimizer_state
from tsugiki.train.state import Progress
from tsugiki.train.timing import rows_in_time, seconds_per_step

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CHECKPOINTS = "checkpoints"
LOGS = "logs"
"""The folder in a run's folder into which trackers write."""
_CHECKPOINTS_PER_RUN = 10
_KEPT_CHECKPOINTS = 2
_LOSS_CURVE_POINTS = 500
_CHOSEN = ("batch_size", "learning_rate")
"""The settings that can be `auto`."""


def train(config: RunConfig, resume: bool = False, progress: RunProgress | None = None) -> RunRecord:
    """Train as `config` describes. The folder `config.out` then holds the adapter or model, and `run.json`.

    Args:
        config: the settings.
        resume: continue from the newest checkpoint in `config.out`.
        progress: where to show the progress; None: a new display on standard error.

    Returns:
        The record of the finished run.

    Raises:
        TsugikiError: an error that the user can correct. Files that were in the folder before are unchanged.
    """
    accelerator, out = accelerator_of(config), Path(config.out)
    with (
        errors_of_others(accelerator),
        progress or RunProgress(shown=accelerator.is_main_process) as display,
        sole_run(accelerator, out),
    ):
        record, checkpoint = start_or_resume(accelerator, config.to_record(), out, resume)
        model, tokenizer, data = load(accelerator, config, display)
        run(accelerator, config, model, tokenizer, data, record, checkpoint, display)
    return record


def accelerator_of(config: RunConfig) -> Accelerator:
    """Return the accelerator for a run; errors are those of `start_accelerator`."""
    return start_accelerator(config.device, config.report_to, str(Path(config.out) / LOGS))


@contextmanager
def sole_run(accelerator: Accelerator, out: Path) -> Iterator[None]:
    """Let no other process use the folder of a run while the block runs, and remove what a killed process left in it.

    Raises:
        TsugikiError: another process uses the folder, or it cannot be written.
    """

    def enter() -> None:
        check_writable(out)
        stack.enter_context(sole_use(out))
        remove_leftovers(out)
        remove_leftovers(out / CHECKPOINTS)

    with ExitStack() as stack:
        on_main(accelerator, enter)
        yield


def start_or_resume(
    accelerator: Accelerator, settings: dict[str, Any], out: Path, resume: bool
) -> tuple[RunRecord, Path | None]:
    """Return the record of the run in `out`, and the checkpoint to continue from (None: start at step 0).

    Args:
        accelerator: connects the processes, of which the main one decides.
        settings: the settings, as `to_record` returns them.
        out: the run's folder.
        resume: continue the run that the folder holds, instead of starting a new one.

    Raises:
        TsugikiError: the folder already holds a run (without `resume`), holds none that can be resumed (with `resume`),
            or all of its checkpoints are damaged.
    """
    return on_main(accelerator, lambda: _resume(settings, out) if resume else (_start(settings, out), None))


def load(
    accelerator: Accelerator, config: RunConfig, display: ProgressDisplay
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase, PackedDataset]":
    """Load the tokenizer, the data and the base model, and pack the data into rows for the model.

    The data are read before the model is loaded, so that errors in them appear at once. The main process reads and
    tokenises them first; the others find the tokens in the cache. The model is moved to the accelerator's device, but
    not if its weights will be split over the processes.

    Raises:
        TsugikiError: data or a model that cannot be read, or rows that are too long for the model.
    """

    def read() -> "tuple[PreTrainedTokenizerBase, NewWords | None, DatasetSplit]":
        tokenizer = load_tokenizer(config.model, trust_remote_code=config.trust_remote_code)
        new = None if config.add_tokens is None else add_words(tokenizer, read_words(Path(config.add_tokens)))
        return tokenizer, new, read_data(config, tokenizer, display)

    tokenizer, new, split = main_first(accelerator, read)
    dtype = load_dtype(config, accelerator.device)
    model = main_first(accelerator, lambda: load_model(config.model, dtype, trust_remote_code=config.trust_remote_code))
    if new is not None:
        add_rows(model, new)
    if not _in_shards(accelerator, config):  # `shard` moves a part of the weights only
        model.to(accelerator.device)
    return model, tokenizer, pack_data(config, split, model, tokenizer)


def run(
    accelerator: Accelerator,
    config: RunConfig,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    data: PackedDataset,
    record: RunRecord,
    checkpoint: Path | None,
    display: RunProgress,
) -> None:
    """Train a loaded model in place, and write the result and the record to `config.out`.

    Args:
        accelerator: the device, and the processes that share the work.
        config: the settings.
        model: the base model, from `load`.
        tokenizer: its tokenizer.
        data: the packed data.
        record: the record of the run, from `start_or_resume`; it is completed here.
        checkpoint: the checkpoint to continue from.
        display: where to show the progress.

    Raises:
        TsugikiError: an error that the user can correct.
    """
    out, given = Path(config.out), config.to_record()
    prepared = prepare_model(model, config, accelerator.device, trained_tokens(config, tokenizer))
    before = record.resolved_settings
    config, chosen = resolved_config(accelerator, config, model, data, before, display.started)
    resolved = prepared | chosen
    parameters = _describe(accelerator, record, config, model, data, resolved)
    check_agreement(
        accelerator,
        {
            **given,
            "shard": config.shard,
            "data": record.data,
            "base model": record.base,
            "settings that depend on the machine": resolved,
        },
    )
    can_restart = given["learning_rate"] == AUTO and is_grafted(model)
    initial = trained_values(model) if can_restart else {}
    if checkpoint is not None:
        load_trained(model, checkpoint)
    if _in_shards(accelerator, config):
        shard_model(model, config, accelerator.device)
    _print_header(config.model, parameters, data, display)
    if accelerator.device.type == "cpu" and "fp16" in resolved.values():
        display.say("processors are slow in fp16; bf16 or fp32 is faster here")
    accelerator.init_trackers("tsugiki", config=_flat(record.config.to_dict()))
    restore = partial(_restore, accelerator, model, out / CHECKPOINTS)
    try:
        while True:
            _print_choices(record.resolved_settings, given, display)
            loop = prepare_loop(accelerator, config, model, data.blocks, data.document_masking)
            loop.save = partial(_save_checkpoint, tokenizer=tokenizer, record=record, folder=out / CHECKPOINTS)
            loop.callbacks.append(EvaluationCallback(model, tokenizer, data, config, record, display, restore))
            if can_restart and len(record.restarts) < MOST_RESTARTS:
                loop.callbacks.append(DivergenceCheck(config.batch_size))
            if checkpoint is not None:
                _load_training_state(loop, checkpoint)
            if accelerator.is_main_process:
                record.write(out)
            try:
                loop.run()
                break
            except DivergedError as error:
                config, checkpoint = _with_lower_rate(config, error, record, display), None
                restore_values(model, initial)
                on_main(accelerator, lambda: keep_newest(out / CHECKPOINTS, 0))
        for tracker in accelerator.trackers:
            tracker.finish()
        record.status = "finished"
        trained = whole_model(model, keep=accelerator.is_main_process)
        if accelerator.is_main_process:
            save_trained(trained, tokenizer, out, config.save_dtype)
            record.write(out)
    except WriteError as error:
        raise WriteError(f"{error}; finished steps are kept: continue with --resume") from error
    accelerator.wait_for_everyone()


def _with_lower_rate(
    config: ResolvedConfig, error: DivergedError, record: RunRecord, display: RunProgress
) -> ResolvedConfig:
    """Return the settings with a lower learning rate, and note in the record that the run begins again."""
    rate = float(f"{config.learning_rate * LOWER:.2g}")
    record.restarts.append(Restart(step=error.step, learning_rate=config.learning_rate))
    record.resolved_settings["learning_rate"] = rate
    record.forget_after(-1)
    record.loss_curve.clear()
    display.say(f"{error}, so the run begins again with a third of the learning rate")
    return with_values(config, learning_rate=rate)


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
        chosen: what the run has chosen before it was interrupted.
        started: when the run began, in seconds of `time.monotonic`.

    Returns:
        The settings; and what was chosen.

    Raises:
        TsugikiError: `minutes` is too short for one step.
    """
    threads = torch.get_num_threads() if accelerator.device.type == "cpu" else 1
    at_once = min(threads * accelerator.num_processes, len(data.blocks))

    def measure() -> int:
        assert config.minutes is not None
        trial = with_values(config, batch_size=at_once, learning_rate=1.0, max_steps=1)
        loop = prepare_loop(accelerator, trial, model, data.blocks, data.document_masking)
        per_row = seconds_per_step(loop) / at_once
        left = config.minutes * 60 - (time.monotonic() - started)
        return on_main(accelerator, lambda: rows_in_time(left, per_row, data))  # all take what the main one measured

    found = resolve(config, model, len(data.blocks), at_once, chosen, measure)
    automatic = {name: getattr(found, name) for name in _CHOSEN if getattr(config, name) == AUTO}
    return found, {**automatic, "steps": total_steps(found, len(data.blocks))}


def prepare_loop(
    accelerator: Accelerator,
    config: ResolvedConfig,
    model: "PreTrainedModel",
    blocks: Blocks,
    document_masking: DocumentMasking,
) -> TrainingLoop:
    """Return the loop of a prepared model, which is on the accelerator's device. It writes no checkpoints yet.

    Raises:
        TsugikiError: an unknown schedule, an optimiser that is not available, or more processes than rows in a step.
    """
    on_main(accelerator, partial(_check_rows, accelerator.num_processes, min(config.batch_size, len(blocks))))
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


def _check_rows(processes: int, rows: int) -> None:
    """Check that each process has at least one row of a step."""
    if processes > rows:
        raise TsugikiError(
            f"{processes} processes cannot share an optimiser step of {rows} {'row' if rows == 1 else 'rows'}: start "
            "fewer processes, or use a larger --batch-size or more data"
        )


def _in_shards(accelerator: Accelerator, config: RunConfig) -> bool:
    """Whether the weights are split over the processes. One process alone has nothing to split."""
    return config.shard == "fsdp" and accelerator.num_processes > 1


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return the differences between two recorded configs in one line; empty if only the folder differs."""
    old, new = _flat(before), _flat(now)
    changed = [name for name in {**new, **old} if new.get(name) != old.get(name) and name != "out"]
    return ", ".join(f"{name} (was {old.get(name)!r}, now {new.get(name)!r})" for name in changed)


def earlier_run(name: str, config: RunConfig) -> RunRecord | None:
    """Return the record of the run that `config.out` already holds; None if it holds none.

    Args:
        name: what the run is called in the error.
        config: the settings that the run must have.

    Raises:
        TsugikiError: the folder holds a run with other settings.
    """
    out = Path(config.out)
    if not (out / RECORD_FILE).is_file():
        return None
    record = read_record(out)
    changed = changed_settings(record.config.to_dict(), config.to_record())
    if changed:
        raise TsugikiError(f"{name}: {out} holds a run with other settings: {changed}; delete it or rename this one")
    return record


def _start(settings: dict[str, Any], out: Path) -> RunRecord:
    """Return the record of a new run, after checking that its folder holds no other run."""
    if any((out / name).exists() for name in (RECORD_FILE, ADAPTER_FILE, MODEL_FILE)) or checkpoints(out / CHECKPOINTS):
        raise TsugikiError(f"{out} already holds a run; choose another --out, or continue the run with --resume")
    return new_record(settings)


def _resume(settings: dict[str, Any], out: Path) -> tuple[RunRecord, Path | None]:
    """Return the record of an interrupted run, and its newest intact checkpoint (None: it has not written any).

    The record is that in the checkpoint, so it has nothing of what the run did after the checkpoint.
    """
    record = _read_record(out)
    if record.status == "finished":
        raise TsugikiError(f"the run in {out} is finished; there is nothing to resume")
    changed = changed_settings(record.config.to_dict(), settings)
    if changed:
        raise TsugikiError(f"the run in {out} was started with other settings: {changed}")
    checkpoint = newest_checkpoint(out / CHECKPOINTS)
    if checkpoint is None:
        record.forget_after(-1)
        return record, None
    if checkpoint.record is None:
        record.forget_after(checkpoint.step)
        return record, checkpoint.folder
    record = parse_record(checkpoint.record, checkpoint.folder / MANIFEST_FILE)
    if load_training_state(checkpoint.folder)[2]["callbacks_pending"]:
        record.forget_after(checkpoint.step - 1)  # what was evaluated and sampled after the step is repeated
    return record, checkpoint.folder


def _read_record(out: Path) -> RunRecord:
    """Return the record of a run; if it cannot be read, the record in the newest intact checkpoint."""
    try:
        return read_record(out)
    except TsugikiError as error:
        checkpoint = newest_checkpoint(out / CHECKPOINTS)
        if checkpoint is None or checkpoint.record is None:
            raise
        warnings.warn(f"{error}; the run continues from {checkpoint.folder.name}", stacklevel=2)
        return parse_record(checkpoint.record, checkpoint.folder / MANIFEST_FILE)


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings by their full names, such as lora.r."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        inner = _flat(value) if isinstance(value, Mapping) else {}
        flat |= {f"{name}.{key}": entry for key, entry in inner.items()} or {name: value}
    return flat


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
    from transformers import get_scheduler  # imports PEFT and bitsandbytes where they are installed: seconds

    warmup = config.warmup_steps or math.ceil(config.warmup_ratio * steps)
    decay = config.decay_steps or math.ceil((config.decay_ratio or 0) * steps)
    options = {"num_decay_steps": decay, "decay_type": "linear"} if decay else None
    try:
        schedule = get_scheduler(config.lr_scheduler_type, optimizer, warmup, steps, options)
    except (ValueError, TypeError) as error:
        raise TsugikiError(f"lr_scheduler_type: {error_text(error)}") from error
    if not isinstance(schedule, LambdaLR):
        raise TsugikiError(f"lr_scheduler_type {config.lr_scheduler_type} depends on evaluations; choose another one")
    return schedule


def _save_checkpoint(loop: TrainingLoop, tokenizer: "PreTrainedTokenizerBase", record: RunRecord, folder: Path) -> None:
    is_main = loop.accelerator.is_main_process
    trained, optimizer = whole_model(loop.model, keep=is_main), whole_optimizer_state(loop.optimizer, keep=is_main)
    if not is_main:
        return
    with new_folder(folder / f"checkpoint-{loop.progress.step}", replace=True) as temporary:
        save_trained(trained, tokenizer, temporary)
        progress = asdict(loop.progress) | {
            "loss_curve": [point.model_dump() for point in loop.progress.loss_curve],
            "scaler": loop.gradients.scaler.state_dict(),
        }
        save_training_state(temporary, optimizer, loop.schedule.state_dict(), progress, record.to_json())
    keep_newest(folder, _KEPT_CHECKPOINTS, loop.progress.best_step)


def _restore(accelerator: Accelerator, model: "PreTrainedModel", folder: Path, step: int) -> None:
    accelerator.wait_for_everyone()  # the main process may still be writing the checkpoint
    load_trained(model, folder / f"checkpoint-{step}")


def _load_training_state(loop: TrainingLoop, folder: Path) -> None:
    optimizer, schedule, progress = load_training_state(folder)
    loop.optimizer.load_state_dict(split_optimizer_state(loop.optimizer, optimizer))
    loop.schedule.load_state_dict(schedule)
    if scaler := progress.pop("scaler", {}):
        loop.gradients.scaler.load_state_dict(scaler)
    curve = [LossPoint.model_validate(point) for point in progress.pop("loss_curve")]
    loop.progress = Progress(**progress, loss_curve=curve)


def _describe(
    accelerator: Accelerator,
    record: RunRecord,
    config: ResolvedConfig,
    model: "PreTrainedModel",
    data: PackedDataset,
    resolved: dict[str, Any],
) -> Parameters:
    """Write the machine, the base, the data and the resolved settings into the record.

    Returns:
        The numbers of parameters, which the record contains as well.

    Raises:
        TsugikiError: a resumed run has another base, other data, or other resolved settings than before.
    """
    _describe_versions(record)
    record.machine = describe_machine(accelerator.device, accelerator.num_processes)
    base_before, data_before = record.base, record.data
    code = code_digest(settings_folder(config.model, trust_remote_code=True)) if config.trust_remote_code else None
    identity = identity_of(model)  # of the base, whose weights the adapter does not change
    record.base = RecordedBase(name=config.model, dtype=str(model.dtype), code=code, **dict(identity))
    record.data = data.summary
    if base_before is not None and (
        _is_other_base(base_before, record.base) or _are_other_data(data_before, record.data)
    ):
        raise TsugikiError(
            f"{config.data} or {config.model} has changed since the run in {config.out} was started; restore it, or "
            "start a new run with another --out"
        )
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = count_parameters(model)
    record.parameters = Parameters(trainable=trainable, total=total, share=trainable / total)
    resolved_before = record.resolved_settings
    record.resolved_settings = resolved
    for name, value in resolved_before.items():
        now = record.resolved_settings.get(name)
        if value != now:
            raise TsugikiError(
                f"the run in {config.out} was started on another machine or with another base: {name} was {value} and "
                f"would be {now} here"
            )
    return record.parameters


def _describe_versions(record: RunRecord) -> None:
    """Note in the record of a resumed run that a library has another version now, and say so."""
    before, now = record.versions, library_versions()
    changed = [f"{name} was {before.get(name)} and is {now[name]}" for name in now if before.get(name) != now[name]]
    if changed:
        warnings.warn(
            f"the run was started with other versions: {summarise_list(changed)}; its result may differ from that of "
            "an uninterrupted run",
            stacklevel=2,
        )
        record.earlier_versions.append(before)
        record.versions = now


def _is_other_base(before: RecordedBase, now: RecordedBase) -> bool:
    return bool(why_different(before, now)) or (before.dtype, before.code) != (now.dtype, now.code)


def _are_other_data(before: DataSummary | None, now: DataSummary) -> bool:
    if before is not None and before.digest is None:  # a record of version 0.1
        now = now.model_copy(update={"digest": None})
    return before != now


def _print_choices(resolved: Mapping[str, Any], given: Mapping[str, Any], progress: RunProgress) -> None:
    chosen = [f"{name.replace('_', ' ')} {resolved[name]:g}" for name in _CHOSEN if given[name] == AUTO]
    if chosen:
        progress.say(f"chosen for {resolved['steps']:,} steps: {', '.join(chosen)}")


def _print_header(model: str, parameters: Parameters, data: PackedDataset, progress: RunProgress) -> None:
    progress.say(f"{model}: {parameters.trainable:,} of {parameters.total:,} parameters train ({parameters.share:.2%})")
    counts, train, held_out = data.summary, data.summary.train, data.summary.held_out
    progress.say(
        f"{train.documents:,} training documents ({train.characters:,} characters, "
        f"{counts.target_tokens_per_epoch:,} target tokens in {counts.blocks:,} blocks of {counts.block_size}), "
        f"{held_out.documents:,} held-out documents ({held_out.characters:,} characters)"
    )
    for note in data.notes:
        progress.say(note)
