"""Tsugiki's entries, which run the same code as `tsugiki train`: a `RunConfig`, `make_trainable` and `build_loop`."""

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tsugiki.bench.hugging_face import ENDLESS
from tsugiki.bench.models import build, read_model_config
from tsugiki.bench.workload import LEARNING_RATE, StepBarrier, Workload
from tsugiki.data.blocks import Blocks, pack
from tsugiki.data.store import RecordIndex, TokenStore
from tsugiki.dtypes import BaseDtype, torch_dtype
from tsugiki.fast.document_masks import detect_document_masking
from tsugiki.lowbit.quantization import quantize
from tsugiki.training.choices import choose
from tsugiki.training.config import CHAPTER, RunConfig
from tsugiki.training.config_files import validated
from tsugiki.training.dtype_speed import faster_dtype, leaves_dtype_open, seconds_of_dtypes
from tsugiki.training.facts import find_shapes, load_dtype
from tsugiki.training.loop_setup import build_loop
from tsugiki.training.model import make_trainable
from tsugiki.training.processes import start_accelerator

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def run(workload: Workload, barrier: StepBarrier, **settings: Any) -> None:
    """Train on rows of random tokens, one document in each row, with the given settings of `RunConfig`."""
    adapter = {"r": workload.r, "target_modules": list(workload.target_modules) or None}
    given = {
        "model": workload.model,
        "data": "random tokens",
        "out": "nothing is written",
        "batch_size": workload.batch,
        "learning_rate": LEARNING_RATE,
        **({"lora": CHAPTER["lora"] | adapter} if settings.get("method", "lora") == "lora" else {}),
        "max_steps": ENDLESS,
        **settings,
    }
    config = validated(RunConfig, given, None)
    accelerator, dtype = start_accelerator(config.device), load_dtype(config)
    if accelerator.device.type == "cpu" and leaves_dtype_open(config):
        seconds = seconds_of_dtypes(config, find_shapes(config, read_model_config(config.model)))
        dtype = faster_dtype(seconds) if seconds else dtype
    model = _base(config.model, dtype)
    model.to(accelerator.device)
    blocks = random_blocks(workload, model.config.vocab_size)
    masking = detect_document_masking(model, workload.length)
    resolved = {"base_dtype": dtype} | make_trainable(model, config)
    choices = choose(config, model, len(blocks), workload.length)
    loop = build_loop(accelerator, config, choices, model, blocks, masking)
    note = "compute_dtype" if "compute_dtype" in resolved else "base_dtype"
    barrier.note(**{note: str(resolved[note])})
    while True:  # until the barrier raises StopRequested
        barrier.begin()
        loop.train_step()
        loop.read_losses()
        barrier.end()


def _base(name: str, dtype: BaseDtype) -> "PreTrainedModel":
    """Build the base in the dtype in which the run would load it."""
    return quantize(build(name, torch.bfloat16)) if dtype == "int8" else build(name, torch_dtype(dtype))


tsugiki = run
tsugiki_fp32 = partial(run, base_dtype="fp32")
tsugiki_bf16 = partial(run, base_dtype="bf16")
tsugiki_int8 = partial(run, base_dtype="int8")


def random_blocks(workload: Workload, vocabulary: int) -> Blocks:
    """Return the rows of a workload as the training data of a run, with one document in each row."""
    ids = workload.rows(vocabulary).numpy()
    rows, length = ids.shape
    index = RecordIndex(
        characters=np.full(rows, length),
        digests=np.zeros((rows, 16), np.uint8),
        signatures=np.zeros((rows, 1), np.uint32),
        splittable=np.ones(rows, bool),
        sources=["random"] * rows,
        fields=[{}] * rows,
    )
    store = TokenStore(
        index=index,
        ids=ids.flatten().astype(np.int32),
        loss_mask=np.tile(np.arange(length) > 0, rows),
        offsets=np.arange(rows + 1) * length,
    )
    return pack(store, np.arange(rows), length, pad=0)
