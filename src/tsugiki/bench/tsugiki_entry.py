"""Tsugiki's entries, which run the same code as `tsugiki train`: a `RunConfig`, `prepare_model` and `build_trainer`."""

from functools import partial
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tsugiki.base.loading import load_tokenizer
from tsugiki.base.quantization import quantize
from tsugiki.base.resolve import EMBEDDED
from tsugiki.bench.hugging_face import ENDLESS, StepBarrierCallback
from tsugiki.bench.models import build
from tsugiki.bench.workload import StepBarrier, Workload
from tsugiki.data.blocks import Blocks, pack
from tsugiki.data.store import RecordIndex, TokenStore
from tsugiki.fast.document_masks import detect_document_masking
from tsugiki.train.config import RunConfig, validated
from tsugiki.train.model import load_dtype, prepare_model
from tsugiki.train.run import build_trainer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def run(workload: Workload, barrier: StepBarrier, **settings: Any) -> None:
    """Train on rows of random tokens, one document in each row, with the given settings of `RunConfig`."""
    with TemporaryDirectory() as folder:
        given = {
            "model": workload.model,
            "data": "random tokens",
            "out": folder,
            "batch_size": workload.batch,
            "grad_accum": 1,
            "max_steps": ENDLESS,
            "save_steps": ENDLESS,
            **settings,
        }
        config = validated(RunConfig, given, None)
        model = _base(config)
        blocks = _blocks(workload, model.config.vocab_size)
        masking = detect_document_masking(model)
        resolved = prepare_model(model, config)
        trainer = build_trainer(config, model, load_tokenizer(EMBEDDED), blocks, masking)
        barrier.note(**{name: str(value) for name, value in resolved.items() if name in _NOTES})
        trainer.add_callback(StepBarrierCallback(barrier))
        trainer.train()


def _base(config: RunConfig) -> "PreTrainedModel":
    """Build the base in the dtype in which the run would load it."""
    precision = load_dtype(config)
    if precision == "fp32":
        return build(config.model, torch.float32)
    model = build(config.model, torch.bfloat16)
    return quantize(model) if precision == "int8" else model


tsugiki = run
tsugiki_fp32 = partial(run, base_dtype="fp32")
tsugiki_bf16 = partial(run, base_dtype="bf16")
tsugiki_int8 = partial(run, base_dtype="int8")
tsugiki_full_fp32 = partial(run, method="full", compute_dtype="fp32")
tsugiki_full_bf16 = partial(run, method="full", compute_dtype="bf16")

_NOTES = ("base_dtype", "compute_dtype")


def _blocks(workload: Workload, vocabulary: int) -> Blocks:
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
