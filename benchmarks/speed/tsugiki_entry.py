"""Tsugiki's entries, which run the same code as `tsugiki train`: a `RunConfig`, `make_trainable` and `build_loop`."""

import time
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.models import build, read_model_config
from benchmarks.speed.workload import ENDLESS, LEARNING_RATE, StepBarrier, Workload, seconds_of_pair
from tsugiki.annotations import PreTrainedModel
from tsugiki.data.blocks import Blocks, pack
from tsugiki.data.store import RecordIndex, TokenStore
from tsugiki.dtypes import BaseDtype, torch_dtype
from tsugiki.fast.document_masks import DocumentMasking, detect_document_masking, shares_prompts
from tsugiki.lowbit.quantization import quantize
from tsugiki.model.meta import meta_model
from tsugiki.preference.losses import LOSSES
from tsugiki.preference.pairs import AnswerRows, Preferences, pack_preferences
from tsugiki.training.choose.choices import choices_for
from tsugiki.training.measure.dtype_speed import faster_dtype, leaves_dtype_open, rows_at_once, seconds_of_dtypes
from tsugiki.training.measure.facts import load_dtype
from tsugiki.training.measure.shapes import Shapes, tokens_of_row
from tsugiki.training.model.trainable import make_trainable
from tsugiki.training.settings.config import CHAPTER, RunConfig
from tsugiki.training.settings.files import validated
from tsugiki.training.step.preference_loss import AnswerLoss, training_reference
from tsugiki.training.step.setup import build_loop
from tsugiki.training.tools.processes import start_accelerator

_PREFERENCE = {"preference": "dpo", "preference_settings": {"likelihood": 0.0}}
"""DPO without the likelihood of the chosen answers, as in TRL. It takes as long as with it."""


def run(workload: Workload, barrier: StepBarrier, **settings: Any) -> None:
    """Train on rows of random tokens, one document or one pair in each row, with the given settings of `RunConfig`."""
    adapter: dict[str, Any] = {"r": workload.r, "target_modules": list(workload.target_modules) or None}
    if workload.prompt:
        adapter["lora_dropout"] = 0.0  # the default of preference tuning, and that of TRL
    given = {
        "model": workload.model,
        "data": "random tokens",
        "out": "nothing is written",
        "batch_size": workload.batch,
        "learning_rate": LEARNING_RATE,
        **({"lora": CHAPTER["lora"] | adapter} if settings.get("method", "lora") == "lora" else {}),
        "max_steps": ENDLESS,
        **(_PREFERENCE if workload.prompt else {}),
        **settings,
    }
    config = validated(RunConfig, given, None)
    accelerator, dtype = start_accelerator(config.device), load_dtype(config)
    shapes = _shapes(config)
    if accelerator.device.type == "cpu" and leaves_dtype_open(config):
        seconds = seconds_of_dtypes(config, shapes)
        dtype = faster_dtype(seconds) if seconds else dtype
    model = _base(config.model, dtype)
    model.to(accelerator.device)
    if workload.prompt:
        barrier.loaded()  # the pass of the reference leaves memory that the steps use again
    masking = detect_document_masking(model, 2 * workload.length if workload.prompt else workload.length)
    answers = random_answers(workload, model, masking) if workload.prompt else None
    blocks = answers.blocks if answers else random_blocks(workload, model.config.vocab_size)
    resolved = {"base_dtype": dtype} | make_trainable(model, config)
    choices = choices_for(config, model, len(blocks), blocks.block_size)
    if accelerator.device.type == "cpu" and config.micro_batch_size is None:
        choices = replace(choices, micro_batch_size=rows_at_once(config, shapes, dtype, choices.batch_size))
    loss = AnswerLoss(answers, LOSSES["dpo"], {}, likelihood=0.0) if answers else None
    loop = build_loop(accelerator, config, choices, model, blocks, masking, loss)
    note = "compute_dtype" if "compute_dtype" in resolved else "base_dtype"
    barrier.note(**{note: str(resolved[note])})
    if answers and loss:
        started = time.perf_counter()
        loss.reference = training_reference(loop.gradients, answers, accelerator, lambda done: None)
        barrier.note(reference=seconds_of_pair(time.perf_counter() - started, len(blocks)))
    while True:  # until the barrier raises StopRequested
        barrier.begin()
        loop.train_step()
        loop.read_losses()
        barrier.end()


def _shapes(config: RunConfig) -> Shapes:
    """Do the same as `find_shapes`, also for a key of `benchmarks.models.SHAPES`."""
    read = read_model_config(config.model)
    model = meta_model(read)
    tokens = tokens_of_row(model, config.block_size, config.virtual_tokens)
    return Shapes(read, model, sum(parameter.numel() for parameter in model.parameters()), tokens)


def _base(name: str, dtype: BaseDtype) -> PreTrainedModel:
    """Build the base in the dtype in which the run would load it."""
    return quantize(build(name, torch.bfloat16)) if dtype == "int8" else build(name, torch_dtype(dtype))


tsugiki = run
tsugiki_fp32 = partial(run, base_dtype="fp32")
tsugiki_bf16 = partial(run, base_dtype="bf16")
tsugiki_int8 = partial(run, base_dtype="int8")
tsugiki_recompute = partial(run, recompute="blocks")
tsugiki_full_fp32 = partial(run, method="full", compute_dtype="fp32")
tsugiki_full_bf16 = partial(run, method="full", compute_dtype="bf16")


def random_blocks(workload: Workload, vocabulary: int) -> Blocks:
    """Return the rows of a workload as the training data of a run, with one document in each row."""
    store = _store(workload.rows(vocabulary), first_target=1)
    return pack(store, np.arange(len(store.index)), workload.length, pad=0)


def random_answers(workload: Workload, model: PreTrainedModel, masking: DocumentMasking) -> AnswerRows:
    """Return the pairs of a workload as the training data of a run, with one pair in each row."""
    store, size = _store(workload.pairs(model.config.vocab_size).flatten(0, 1), workload.prompt), 2 * workload.length
    rows = np.arange(len(store.index) // 2)
    preferences = Preferences(store, store.index, np.tile([True, False], len(rows)), 2, rows, {})
    blocks, _too_long = pack_preferences(preferences, rows, size, 0, shares_prompts(model, masking, size))
    return AnswerRows(preferences, blocks, apart=masking == "separate_rows")


def _store(ids: Tensor, first_target: int) -> TokenStore:
    """Return rows of tokens as records; the tokens from place `first_target` are in the loss."""
    rows, length = ids.shape
    index = RecordIndex(
        characters=np.full(rows, length),
        digests=np.zeros((rows, 16), np.uint8),
        signatures=np.zeros((rows, 1), np.uint32),
        splittable=np.ones(rows, bool),
        questions=np.zeros(rows, np.uint64),
        answers=np.zeros(rows, np.uint64),
        sources=["random"] * rows,
        fields=[{}] * rows,
    )
    return TokenStore(
        index=index,
        ids=ids.flatten().numpy().astype(np.int32),
        loss_mask=np.tile(np.arange(length) >= first_target, rows),
        offsets=np.arange(rows + 1) * length,
    )
