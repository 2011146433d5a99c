"""One run: from a config, data and a base model to a folder that holds the trained adapter or model.

train
  start_or_resume         the record, and the checkpoint to continue from
  load                    tokenizer -> data -> model -> packed data
  run
    prepare_model         graft the adapter (see `train.model`)
    build_trainer         optimiser, schedule, gradients
    RunTrainer.train      the loop; `EvaluationCallback` evaluates, samples and writes `run.json`
    save_trained          the adapter's or the model's files
"""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainingArguments

from tsugiki.base.checks import code_digest
from tsugiki.base.fingerprint import base_fingerprint
from tsugiki.base.loading import load_model, load_tokenizer
from tsugiki.base.resolve import settings_folder
from tsugiki.data.blocks import Blocks
from tsugiki.errors import TsugikiError, error_text
from tsugiki.fast.document_masks import DocumentMasking
from tsugiki.io.atomic import check_writable, remove_leftovers
from tsugiki.io.file_names import ADAPTER_FILE, MODEL_FILE, RECORD_FILE
from tsugiki.io.progress import ProgressDisplay
from tsugiki.train.allocator import keep_freed_memory
from tsugiki.train.checkpoint import checkpoints
from tsugiki.train.config import LORA_PLUS, RunConfig
from tsugiki.train.evaluation_callback import EvaluationCallback
from tsugiki.train.model import load_dtype, make_gradients, prepare_model, save_trained
from tsugiki.train.optimizers.loraplus import loraplus
from tsugiki.train.optimizers.muon import muon
from tsugiki.train.preparation import PackedDataset, pack_data, read_data
from tsugiki.train.progress import RunProgress
from tsugiki.train.record import Parameters, RecordedBase, RunRecord, describe_machine, new_record, read_record
from tsugiki.train.trainer import RunTrainer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CHECKPOINTS = "checkpoints"
_CHECKPOINTS_PER_RUN = 10
_LOSS_CURVE_POINTS = 500


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
    record, checkpoint = start_or_resume(config.to_record(), Path(config.out), resume)
    with progress or RunProgress() as shown:
        model, tokenizer, data = load(config, shown)
        run(config, model, tokenizer, data, record, checkpoint, shown)
    return record


def start_or_resume(settings: dict[str, Any], out: Path, resume: bool) -> tuple[RunRecord, Path | None]:
    """Return the record of the run in `out`, and the checkpoint to continue from (None: start at step 0).

    Args:
        settings: the settings, as `to_record` returns them.
        out: the run's folder.
        resume: continue the run that the folder holds, instead of starting a new one.

    Raises:
        TsugikiError: the folder already holds a run (without `resume`), holds none that can be resumed (with `resume`),
            or cannot be written.
    """
    return _resume(settings, out) if resume else (_start(settings, out), None)


def load(
    config: RunConfig, progress: ProgressDisplay
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase, PackedDataset]":
    """Load the tokenizer, the data and the base model, and pack the data into rows for the model.

    The data are read before the model is loaded, so that errors in them appear at once.

    Raises:
        TsugikiError: data or a model that cannot be read, or rows that are too long for the model.
    """
    tokenizer = load_tokenizer(config.model, trust_remote_code=config.trust_remote_code)
    split = read_data(config, tokenizer, progress)
    model = load_model(config.model, load_dtype(config), trust_remote_code=config.trust_remote_code)
    return model, tokenizer, pack_data(config, split, model, tokenizer)


def run(
    config: RunConfig,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    data: PackedDataset,
    record: RunRecord,
    checkpoint: Path | None,
    progress: RunProgress,
) -> None:
    """Train a loaded model in place, and write the result and the record to `config.out`.

    Args:
        config: the settings.
        model: the base model, from `load`.
        tokenizer: its tokenizer.
        data: the packed data.
        record: the record of the run, from `start_or_resume`; it is completed here.
        checkpoint: the checkpoint to continue from.
        progress: where to show the progress.

    Raises:
        TsugikiError: an error that the user can correct.
    """
    out = Path(config.out)
    logging.getLogger("transformers.trainer").setLevel(logging.ERROR)
    resolved = prepare_model(model, config)
    parameters = _describe(record, config, model, data, resolved)
    trainer = build_trainer(config, model, tokenizer, data.blocks, data.document_masking)
    _print_header(config.model, parameters, data, progress)
    record.write(out)
    trainer.add_callback(EvaluationCallback(trainer, model, tokenizer, data, config, record, progress))
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    save_trained(model, tokenizer, out, config.save_dtype)
    record.status = "finished"
    record.write(out)


def build_trainer(
    config: RunConfig,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    blocks: Blocks,
    document_masking: DocumentMasking,
) -> RunTrainer:
    """Return the trainer of a prepared model.

    Raises:
        TsugikiError: transformers rejects a setting, or the optimiser is not available.
    """
    if model.device.type == "cpu":
        keep_freed_memory()
    gradients, optimizer = make_gradients(model, config), _optimizer(model, config)
    try:
        arguments = _training_arguments(config, len(blocks))
        return RunTrainer(model, arguments, blocks, document_masking, tokenizer, gradients, optimizer)
    except (ValueError, RuntimeError, ImportError) as error:  # an unknown schedule, or a logger that is not installed
        raise TsugikiError(f"settings: {error_text(error)}") from error


def total_steps(config: RunConfig, rows: int) -> int:
    """Return the number of optimiser steps of a run on `rows` rows, as transformers' Trainer counts them.

    The last step of an epoch may have fewer batches than the others.
    """
    if config.max_steps is not None:
        return config.max_steps
    batches = math.ceil(rows / config.batch_size)
    return math.ceil(config.epochs * max(1, math.ceil(batches / config.grad_accum)))


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
    """Return the record of a new run, after checking that its folder can be written and holds no other run."""
    for name in (RECORD_FILE, ADAPTER_FILE, MODEL_FILE):
        if (out / name).exists():
            raise TsugikiError(f"{out} already holds a run; choose another --out, or continue the run with --resume")
    check_writable(out)
    return new_record(settings)


def _resume(settings: dict[str, Any], out: Path) -> tuple[RunRecord, Path | None]:
    """Return the record of an interrupted run, and its newest checkpoint (None: it has not written any)."""
    record = read_record(out)
    if record.status == "finished":
        raise TsugikiError(f"the run in {out} is finished; there is nothing to resume")
    changed = changed_settings(record.config.to_dict(), settings)
    if changed:
        raise TsugikiError(f"the run in {out} was started with other settings: {changed}")
    remove_leftovers(out)
    remove_leftovers(out / CHECKPOINTS)
    found = checkpoints(out / CHECKPOINTS)
    record.forget_after(int(found[-1].name.rpartition("-")[2]) if found else -1)
    return record, found[-1] if found else None


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings by their full names, such as lora.r."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        inner = _flat(value) if isinstance(value, Mapping) else {}
        flat |= {f"{name}.{key}": entry for key, entry in inner.items()} or {name: value}
    return flat


def _optimizer(model: "PreTrainedModel", config: RunConfig) -> torch.optim.Optimizer | None:
    """Return the optimiser of the trained parameters; None: AdamW, which transformers' Trainer creates."""
    if config.method == LORA_PLUS:
        return loraplus(model, config)
    return muon(model, config) if config.optimizer == "muon" else None


def _training_arguments(config: RunConfig, rows: int) -> TrainingArguments:
    steps = total_steps(config, rows)
    return TrainingArguments(
        output_dir=str(Path(config.out) / CHECKPOINTS),
        num_train_epochs=config.epochs,
        max_steps=config.max_steps or -1,
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.grad_accum,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.lr_scheduler_type,
        lr_scheduler_kwargs=_decay(config, steps),
        adam_beta2=config.adam_beta2,
        warmup_steps=config.warmup_steps or config.warmup_ratio,  # transformers takes a value below 1 as a share
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        seed=config.seed,
        save_strategy="steps",
        save_steps=config.save_steps or max(1, steps // _CHECKPOINTS_PER_RUN),
        logging_steps=max(1, steps // _LOSS_CURVE_POINTS),
        logging_nan_inf_filter=False,  # it would hide losses that are not finite
        report_to=list(config.report_to),
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        disable_tqdm=True,
    )


def _decay(config: RunConfig, steps: int) -> dict[str, Any] | None:
    """Return the arguments of the schedule `warmup_stable_decay`; None for other schedules."""
    if config.decay_ratio is not None:
        return {"num_decay_steps": math.ceil(config.decay_ratio * steps), "decay_type": "linear"}
    return {"num_decay_steps": config.decay_steps, "decay_type": "linear"} if config.decay_steps else None


def _describe(
    record: RunRecord, config: RunConfig, model: "PreTrainedModel", data: PackedDataset, resolved: dict[str, Any]
) -> Parameters:
    """Write the machine, the base, the data and the resolved settings into the record.

    Returns:
        The numbers of parameters, which the record contains as well.

    Raises:
        TsugikiError: a resumed run has another base, other data, or other resolved settings than before.
    """
    record.machine = describe_machine()
    base_before, data_before = record.base, record.data
    code = code_digest(settings_folder(config.model, trust_remote_code=True)) if config.trust_remote_code else None
    record.base = RecordedBase(
        name=config.model, fingerprint=base_fingerprint(model), dtype=str(model.dtype), code=code
    )
    record.data = data.summary
    if base_before is not None and (base_before, data_before) != (record.base, record.data):
        raise TsugikiError(
            f"{config.data} or {config.model} has changed since the run in {config.out} was started; restore it, or "
            "start a new run with another --out"
        )
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    record.parameters = Parameters(trainable=trainable, total=total, share=trainable / total)
    resolved_before = record.resolved_settings
    record.resolved_settings = {**resolved, "steps": total_steps(config, len(data.blocks))}
    for name, value in resolved_before.items():
        now = record.resolved_settings.get(name)
        if value != now:
            raise TsugikiError(
                f"the run in {config.out} was started on another machine or with another base: {name} was {value} and "
                f"would be {now} here"
            )
    return record.parameters


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
