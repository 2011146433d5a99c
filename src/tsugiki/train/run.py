"""One run, from texts and a base to an adapter in a folder."""

import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import TrainingArguments, set_seed

from tsugiki.adapters.files import WEIGHTS_FILE, save_adapter
from tsugiki.adapters.fingerprint import base_fingerprint
from tsugiki.data.blocks import Blocks
from tsugiki.errors import TsugikiError
from tsugiki.lora.graft import active_adapter, graft, trainable_parameters
from tsugiki.models import load_model, load_tokenizer
from tsugiki.train.checkpoint import checkpoints
from tsugiki.train.config import RunConfig
from tsugiki.train.isolation import Isolation
from tsugiki.train.preparation import Prepared, pack_data, read_data
from tsugiki.train.progress import RunProgress
from tsugiki.train.record import RECORD_FILE, RunRecord, describe_machine, read_record
from tsugiki.train.trainer import AdapterTrainer
from tsugiki.train.watch import Watch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CHECKPOINTS = "checkpoints"
_SAVES = 10
_LOGGED = 500


def train(config: RunConfig, resume: bool = False, progress: RunProgress | None = None) -> RunRecord:
    """Train an adapter as `config` says; the folder `config.out` then holds it, and `run.json`.

    Args:
        config: the settings.
        resume: go on from the newest checkpoint in `config.out`.
        progress: where to show the run; a display of its own by default.

    Returns:
        The finished record.

    Raises:
        TsugikiError: anything that a person can put right; what the folder held is still there.
    """
    out = Path(config.out)
    record, checkpoint = _take_up(config, out) if resume else (_new_record(config, out), None)
    logging.getLogger("transformers.trainer").setLevel(logging.ERROR)
    with progress or RunProgress() as shown:
        tokenizer = load_tokenizer(config.model)
        data = read_data(config, tokenizer, shown)
        model = load_model(config.model)
        prepared = pack_data(config, data, model, tokenizer)
        set_seed(config.seed)
        graft(model, config.lora, base_dropout=config.base_dropout)
        _describe(record, config, model, prepared)
        trainer = new_trainer(config, model, prepared.blocks, prepared.isolation)
        _introduce(record, prepared, shown)
        record.write(out)
        trainer.add_callback(Watch(trainer, model, tokenizer, prepared.windows, config, record, shown))
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        save_adapter(model, out)
        record.status = "finished"
        record.write(out)
    return record


def _new_record(config: RunConfig, out: Path) -> RunRecord:
    for name in (RECORD_FILE, WEIGHTS_FILE):
        if (out / name).exists():
            raise TsugikiError(f"{out} already holds a run; choose another --out, or go on with it by --resume")
    if out.is_file():
        raise TsugikiError(f"{out} is a file; --out names a folder")
    return RunRecord(config=config.model_dump(mode="json"))


def _take_up(config: RunConfig, out: Path) -> tuple[RunRecord, Path | None]:
    """The record of a run that stopped, and its newest checkpoint (None: it had not come to the first)."""
    record = read_record(out)
    if record.status == "finished":
        raise TsugikiError(f"the run in {out} is finished; there is nothing to resume")
    now = config.model_dump(mode="json")
    changed = [name for name in now if now[name] != record.config.get(name) and name != "out"]
    if changed:
        details = ", ".join(f"{name} (was {record.config.get(name)!r}, now {now[name]!r})" for name in changed)
        raise TsugikiError(f"the run in {out} was begun with other settings: {details}")
    found = checkpoints(out / CHECKPOINTS)
    record.forget_after(int(found[-1].name.rpartition("-")[2]) if found else -1)
    return record, found[-1] if found else None


def new_trainer(config: RunConfig, model: "PreTrainedModel", blocks: Blocks, isolation: Isolation) -> AdapterTrainer:
    """The trainer of a run.

    Raises:
        TsugikiError: a setting that transformers does not take.
    """
    try:
        return AdapterTrainer(model, _arguments(config, len(blocks)), blocks, isolation)
    except (ValueError, RuntimeError, ImportError) as error:  # an unknown schedule, a logger not installed
        raise TsugikiError(f"settings: {' '.join(str(error).split())[:300]}") from error


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
        warmup_steps=config.warmup_steps,
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


def _describe(record: RunRecord, config: RunConfig, model: "PreTrainedModel", prepared: Prepared) -> None:
    record.machine = describe_machine()
    began_with = record.base, record.data
    record.base = {"name": config.model, "fingerprint": base_fingerprint(model), "dtype": str(model.dtype)}
    record.data = prepared.summary
    if any(began_with) and began_with != (record.base, record.data):
        raise TsugikiError(
            f"the run in {config.out} was begun on another state of {config.data} or of {config.model}; "
            "bring that back, or start anew with another --out"
        )
    trainable = sum(p.numel() for p in trainable_parameters(model).values())
    total = sum(p.numel() for p in model.parameters())
    record.parameters = {"trainable": trainable, "total": total, "share": trainable / total}
    record.choices = {
        "base_dropout": "on" if config.base_dropout else "off while the adapter trains",
        "target_modules": sorted({path.rpartition(".")[2] for path in active_adapter(model).pairs}),
        "steps": config.max_steps or total_steps(config, len(prepared.blocks)),
    }


def _introduce(record: RunRecord, prepared: Prepared, progress: RunProgress) -> None:
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
