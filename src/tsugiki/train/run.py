"""One run, from texts and a base to an adapter in a folder."""

import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainingArguments, set_seed

from tsugiki.adapters.files import WEIGHTS_FILE, save_adapter
from tsugiki.adapters.fingerprint import base_fingerprint
from tsugiki.data.blocks import Blocks, pack, token_stream
from tsugiki.data.cache import cache_folder
from tsugiki.data.texts import Document, fingerprint, read_documents, refuse_overlap, split_documents
from tsugiki.errors import TsugikiError
from tsugiki.lora.graft import active_adapter, graft, trainable_parameters
from tsugiki.models import load_model, load_tokenizer
from tsugiki.train.checkpoint import checkpoints
from tsugiki.train.config import RunConfig
from tsugiki.train.evaluate import context_length, cut_windows
from tsugiki.train.progress import RunProgress
from tsugiki.train.record import RECORD_FILE, RunRecord, describe_machine, read_record
from tsugiki.train.trainer import AdapterTrainer
from tsugiki.train.watch import Watch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CHECKPOINTS = "checkpoints"
_BLOCK_SIZE = 512
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
        train_documents, held_out = _documents(config, shown)
        model, tokenizer = load_model(config.model), load_tokenizer(config.model)
        set_seed(config.seed)
        graft(model, config.lora, base_dropout=config.base_dropout)
        size = _block_size(config, model)
        with shown.stage("tokenising", len(train_documents)) as advance:
            blocks = pack(token_stream(tokenizer, train_documents, cache_folder("tokens"), advance), size)
        windows = cut_windows(held_out, config.held_out_characters)
        _describe(record, config, model, train_documents, held_out, blocks, sum(map(len, windows)))
        trainer = _trainer(config, out, model, blocks)
        _introduce(record, shown)
        record.write(out)
        trainer.add_callback(Watch(trainer, model, tokenizer, windows, config, record, shown))
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


def _documents(config: RunConfig, progress: RunProgress) -> tuple[list[Document], list[Document]]:
    documents = read_documents(config.data)
    if isinstance(config.held_out, str):
        held_out = read_documents(config.held_out)
        refuse_overlap(documents, held_out)
        return documents, held_out
    if len(documents) == 1:
        progress.say(f"one document: its last {config.held_out:.0%} is held out")
    return split_documents(documents, config.held_out, config.seed)


def _block_size(config: RunConfig, model: "PreTrainedModel") -> int:
    context = context_length(model)
    if config.block_size and config.block_size > context:
        raise TsugikiError(f"block_size is {config.block_size}, but the model's context is {context} tokens")
    return config.block_size or min(_BLOCK_SIZE, context)


def _trainer(config: RunConfig, out: Path, model: "PreTrainedModel", blocks: Blocks) -> AdapterTrainer:
    try:
        return AdapterTrainer(model, _arguments(config, out, len(blocks)), blocks)
    except (ValueError, RuntimeError, ImportError) as error:  # an unknown schedule, a logger not installed
        raise TsugikiError(f"settings: {' '.join(str(error).split())[:300]}") from error


def _arguments(config: RunConfig, out: Path, rows: int) -> TrainingArguments:
    steps = config.max_steps or total_steps(config, rows)
    return TrainingArguments(
        output_dir=str(out / CHECKPOINTS),
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


def _describe(
    record: RunRecord,
    config: RunConfig,
    model: "PreTrainedModel",
    train_documents: list[Document],
    held_out: list[Document],
    blocks: Blocks,
    measured_characters: int,
) -> None:
    record.machine = describe_machine()
    began_with = record.base, record.data
    record.base = {"name": config.model, "fingerprint": base_fingerprint(model), "dtype": str(model.dtype)}
    record.data = {
        "train": _summary(train_documents),
        "held_out": {**_summary(held_out), "measured_characters": measured_characters},
        "blocks": len(blocks),
        "block_size": blocks.input_ids.shape[1],
        "learned_tokens_per_epoch": blocks.learned_tokens,
    }
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
        "steps": config.max_steps or total_steps(config, len(blocks)),
    }


def _summary(documents: list[Document]) -> dict[str, Any]:
    return {
        "documents": len(documents),
        "characters": sum(len(document.text) for document in documents),
        "fingerprint": fingerprint(documents),
    }


def _introduce(record: RunRecord, progress: RunProgress) -> None:
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
