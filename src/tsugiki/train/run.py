"""One run, from texts and a base to an adapter, or a model, in a folder."""

import logging
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainingArguments, set_seed

from tsugiki.adapters.format import RECORD_FILE, WEIGHTS_FILE
from tsugiki.base.fingerprint import base_fingerprint
from tsugiki.base.loading import load_tokenizer
from tsugiki.data.blocks import Blocks
from tsugiki.errors import TsugikiError, error_text
from tsugiki.fast.document_masking import DocumentMasking
from tsugiki.io.file_names import MODEL_FILE
from tsugiki.io.progress import RunProgress
from tsugiki.train.allocator import keep_freed_memory
from tsugiki.train.checkpoint import checkpoints
from tsugiki.train.config import LORA_PLUS, RunConfig
from tsugiki.train.evaluation_callback import EvaluationCallback
from tsugiki.train.optimizers.loraplus import loraplus
from tsugiki.train.optimizers.muon import muon
from tsugiki.train.preparation import PackedDataset, pack_data, read_data
from tsugiki.train.record import RunRecord, describe_machine, read_record
from tsugiki.train.trainer import Parts, RunTrainer
from tsugiki.train.ways import Way, way_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CHECKPOINTS = "checkpoints"
_SAVES = 10
_LOGGED = 500


def train(config: RunConfig, resume: bool = False, progress: RunProgress | None = None) -> RunRecord:
    """Train as `config` says; the folder `config.out` then holds the adapter, or the model, and `run.json`.

    Args:
        config: the settings.
        resume: go on from the newest checkpoint in `config.out`.
        progress: where to show the run; a display of its own by default.

    Returns:
        The finished record.

    Raises:
        TsugikiError: anything that a person can put right; what the folder held is still there.
    """
    record, checkpoint = begin(config.to_record(), Path(config.out), resume)
    with progress or RunProgress() as shown:
        carry_out(config, record, checkpoint, shown)
    return record


def begin(settings: dict[str, Any], out: Path, resume: bool) -> tuple[RunRecord, Path | None]:
    """The record of a run that begins, or that goes on, and the checkpoint that it goes on from, if any.

    Raises:
        TsugikiError: the folder holds another run, or none to go on with, or it cannot be written.
    """
    return _take_up(settings, out) if resume else (_new_record(settings, out), None)


def carry_out(config: RunConfig, record: RunRecord, checkpoint: Path | None, shown: RunProgress) -> None:
    """Train, and write what was trained, and the record, to `config.out`.

    Raises:
        TsugikiError: as for `train`.
    """
    train_prepared(config, record, checkpoint, prepare(config, shown), shown)


@dataclass(frozen=True)
class Ready:
    """What a run needs before it begins."""

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    data: PackedDataset


def prepare(config: RunConfig, shown: RunProgress) -> Ready:
    """Read the data, load the model, and pack the one for the other.

    Raises:
        TsugikiError: data or a model that cannot be read, or that do not go together.
    """
    tokenizer = load_tokenizer(config.model)
    data = read_data(config, tokenizer, shown)
    model = way_of(config).load(config)
    return Ready(model, tokenizer, pack_data(config, data, model, tokenizer))


def train_prepared(
    config: RunConfig, record: RunRecord, checkpoint: Path | None, ready: Ready, shown: RunProgress
) -> None:
    """Train the model that stands ready, in place, and write what was trained, and the record, to `config.out`.

    Raises:
        TsugikiError: as for `train`.
    """
    out, way, model = Path(config.out), way_of(config), ready.model
    logging.getLogger("transformers.trainer").setLevel(logging.ERROR)
    trainer = begin_training(config, ready, record)
    _introduce(record, ready.data, shown)
    record.write(out)
    trainer.add_callback(EvaluationCallback(trainer, model, ready.tokenizer, ready.data, config, record, shown))
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    way.save(model, ready.tokenizer, out, config.save_dtype)
    record.status = "finished"
    record.write(out)


def begin_training(config: RunConfig, ready: Ready, record: RunRecord) -> RunTrainer:
    """Make the model ready for its method, describe the run in `record`, and return its trainer.

    Raises:
        TsugikiError: settings that do not fit the model, or a record that was begun on another base or text.
    """
    way = way_of(config)
    set_seed(config.seed)
    choices = way.begin(ready.model, config)
    _describe(record, config, ready.model, ready.data, choices)
    parts = _parts(way, ready.model, ready.tokenizer, config)
    return new_trainer(config, ready.model, ready.data.blocks, ready.data.isolation, parts)


def new_trainer(
    config: RunConfig, model: "PreTrainedModel", blocks: Blocks, isolation: DocumentMasking, parts: Parts
) -> RunTrainer:
    """The trainer of a run.

    Raises:
        TsugikiError: a setting that transformers does not take.
    """
    if model.device.type == "cpu":
        keep_freed_memory()
    try:
        return RunTrainer(model, _arguments(config, len(blocks)), blocks, isolation, parts)
    except (ValueError, RuntimeError, ImportError) as error:  # an unknown schedule, a logger not installed
        raise TsugikiError(f"settings: {error_text(error)}") from error


def _new_record(settings: dict[str, Any], out: Path) -> RunRecord:
    for name in (RECORD_FILE, WEIGHTS_FILE, MODEL_FILE):
        if (out / name).exists():
            raise TsugikiError(f"{out} already holds a run; choose another --out, or go on with it by --resume")
    if out.is_file():
        raise TsugikiError(f"{out} is a file; --out names a folder")
    there = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise TsugikiError(f"{out} cannot be written: {there} is no folder that you may write to; choose another --out")
    return RunRecord(config=settings)


def _take_up(settings: dict[str, Any], out: Path) -> tuple[RunRecord, Path | None]:
    """The record of a run that stopped, and its newest checkpoint (None: it had not come to the first)."""
    record = read_record(out)
    if record.status == "finished":
        raise TsugikiError(f"the run in {out} is finished; there is nothing to resume")
    changed = changed_settings(record.config, settings)
    if changed:
        raise TsugikiError(f"the run in {out} was begun with other settings: {changed}")
    found = checkpoints(out / CHECKPOINTS)
    record.forget_after(int(found[-1].name.rpartition("-")[2]) if found else -1)
    return record, found[-1] if found else None


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs between two runs' recorded settings, told in one line; empty where nothing but the folder does."""
    old, new = _flat(before), _flat(now)
    changed = [name for name in {**new, **old} if new.get(name) != old.get(name) and name != "out"]
    return ", ".join(f"{name} (was {old.get(name)!r}, now {new.get(name)!r})" for name in changed)


def earlier_run(name: str, config: RunConfig) -> RunRecord | None:
    """The record of a run with these settings that is in `config.out` already, if any; `name` is for the error.

    Raises:
        TsugikiError: it holds a run with other settings.
    """
    out = Path(config.out)
    if not (out / RECORD_FILE).is_file():
        return None
    record = read_record(out)
    changed = changed_settings(record.config, config.to_record())
    if changed:
        raise TsugikiError(f"{name}: {out} holds a run with other settings: {changed}; delete it or rename this one")
    return record


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by their whole names, such as lora.r."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        inner = _flat(value) if isinstance(value, Mapping) else {}
        flat |= {f"{name}.{key}": entry for key, entry in inner.items()} or {name: value}
    return flat


def _parts(way: Way, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", config: RunConfig) -> Parts:
    return Parts(
        save=lambda module, folder: way.save(module, tokenizer, folder, "float32"),
        refill=way.refill,
        gradients=way.gradients(model, config),
        optimizer=_optimizer(model, config),
    )


def _optimizer(model: "PreTrainedModel", config: RunConfig) -> torch.optim.Optimizer | None:
    if config.method == LORA_PLUS:
        return loraplus(model, config)
    return muon(model, config) if config.optimizer == "muon" else None


def _arguments(config: RunConfig, rows: int) -> TrainingArguments:
    steps = config.max_steps or total_steps(config, rows)
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
        save_steps=config.save_steps or max(1, steps // _SAVES),
        logging_steps=max(1, steps // _LOGGED),
        logging_nan_inf_filter=False,  # it would hide a loss that is not finite
        report_to=list(config.report_to),
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        disable_tqdm=True,
    )


def total_steps(config: RunConfig, rows: int) -> int:
    """Optimiser steps of a run over `rows` blocks, as Trainer counts them; an epoch's last one may be smaller."""
    batches = math.ceil(rows / config.batch_size)
    return math.ceil(config.epochs * max(1, math.ceil(batches / config.grad_accum)))


def _decay(config: RunConfig, steps: int) -> dict[str, Any] | None:
    """The arguments of the schedule `warmup_stable_decay`; None for other schedules."""
    if config.decay_ratio is not None:
        return {"num_decay_steps": math.ceil(config.decay_ratio * steps), "decay_type": "linear"}
    return {"num_decay_steps": config.decay_steps, "decay_type": "linear"} if config.decay_steps else None


def _describe(
    record: RunRecord, config: RunConfig, model: "PreTrainedModel", prepared: PackedDataset, choices: dict[str, Any]
) -> None:
    record.machine = describe_machine()
    began_with = record.base, record.data
    record.base = {"name": config.model, "fingerprint": base_fingerprint(model), "dtype": str(model.dtype)}
    record.data = prepared.summary
    if any(began_with) and began_with != (record.base, record.data):
        raise TsugikiError(
            f"the run in {config.out} was begun on another state of {config.data} or of {config.model}; "
            "bring that back, or start anew with another --out"
        )
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    record.parameters = {"trainable": trainable, "total": total, "share": trainable / total}
    steps = config.max_steps or total_steps(config, len(prepared.blocks))
    began, record.resolved_settings = record.resolved_settings, {**choices, "steps": steps}
    for name, choice in began.items():
        now = record.resolved_settings.get(name)
        if choice != now:
            raise TsugikiError(
                f"the run in {config.out} was begun elsewhere: {name} was {choice} and would be {now} here"
            )


def _introduce(record: RunRecord, prepared: PackedDataset, progress: RunProgress) -> None:
    parameters, data = record.parameters, record.data
    progress.say(
        f"{record.base['name']}: {parameters['trainable']:,} of {parameters['total']:,} parameters train "
        f"({parameters['share']:.2%})"
    )
    progress.say(
        f"{data['train']['documents']:,} documents to learn ({data['train']['characters']:,} characters, "
        f"{data['learned_tokens_per_epoch']:,} tokens in {data['blocks']:,} blocks of {data['block_size']}), "
        f"{data['held_out']['documents']:,} held out ({data['held_out']['characters']:,} characters)"
    )
    for note in prepared.notes:
        progress.say(note)
