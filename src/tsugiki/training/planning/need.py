"""The memory that a run needs on its device, before its model is loaded.

    peak = process + base + 16 · trained + threads · (activations + transient + loss + 4 · trained)
    activations = kept blocks · what a block keeps + recomputed blocks · its input
    16: a trained parameter, its gradient, and AdamW's two averages, in float32; 4: its gradient for one micro-batch
    threads: micro-batches that are computed at a time, one on an accelerator
    process: Python and the imported libraries, which take no memory of an accelerator; recomputing imports more

In full fine-tuning all weights train, and the copy that computes in 16 bits is the base. What a block keeps and how
long it takes is measured (see `planning.sample`). `benchmarks.planning` compares the result with runs.
"""

import gc
import math
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from tsugiki.base.loading import stored_path
from tsugiki.base.model_config import loading_errors
from tsugiki.dtypes import BaseDtype
from tsugiki.errors import TsugikiError, error_text, is_ordinary
from tsugiki.fast.loss import rows_per_chunk
from tsugiki.language import _
from tsugiki.methods.table import METHODS
from tsugiki.model.blocks import decoder_blocks
from tsugiki.model.meta import meta_model
from tsugiki.training import memory
from tsugiki.training.config import RunConfig
from tsugiki.training.packing import tokens_of_row
from tsugiki.training.planning.sample import Measured, blocks_of_sample, measure, sample_model
from tsugiki.training.planning.weights import base_bytes, loading_bytes, stored_bytes

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_COMPILER = 68_000_000
"""Bytes of PyTorch's compiler, which PyTorch imports when the first block is recomputed."""


@dataclass(frozen=True)
class Need:
    """The memory that a run needs, without its data."""

    parameters: int
    trainable: int
    """Number of trained parameters."""
    blocks: int
    """Number of blocks of the decoder."""
    base: int
    """Bytes of the frozen base."""
    loading: int
    """Bytes that are needed besides the base while it is loaded. An accelerator gets the finished model."""
    process: int
    """Bytes of the process without the model and its training."""
    loss: int
    """Bytes for the loss of a micro-batch."""
    threads: int
    """Micro-batches that are computed at a time."""
    measured: Measured
    recomputation: int = 0
    """Additional bytes of the process if blocks are recomputed."""

    def peak(self, recomputed: int) -> int:
        """Return the peak memory of the process in bytes if `recomputed` blocks are recomputed."""
        parts = self.parts(recomputed)
        loading = parts.pop("loading")
        return max(sum(parts.values()), self.process + self.base + loading)

    def parts(self, recomputed: int) -> dict[str, int]:
        """Return name -> bytes of the parts of the memory. The part `loading` is free again before the first step."""
        block, kept = self.measured, (self.blocks - recomputed) * self.measured.kept
        activations = recomputed * block.input + max(kept, block.kept if recomputed else 0)
        return {
            "process": self.process + (self.recomputation if recomputed else 0),
            "base": self.base,
            "adapter": 4 * self.trainable,
            "gradients": 4 * self.trainable * (1 + self.threads),
            "optimizer": 8 * self.trainable,
            "activations": self.threads * (activations + block.transient),
            "loss": self.threads * self.loss,
            "loading": self.loading,
        }

    def recomputed(self, available: int) -> int:
        """Return how many blocks must be recomputed for a peak of at most `available` bytes; at most all blocks."""
        return next((n for n in range(self.blocks) if self.peak(n) <= available), self.blocks)


def need_of(
    config: RunConfig,
    shapes: "PretrainedConfig",
    base_dtype: BaseDtype,
    device: torch.device,
    rows: int,
    rows_in_step: int,
    timed: bool = False,
) -> Need:
    """Return the memory that a run needs, from measurements of a few blocks of its model.

    Args:
        config: the settings of the run.
        shapes: the config of the model.
        base_dtype: dtype of the base; for full fine-tuning, of the copy that computes.
        device: where the run computes.
        rows: rows of a micro-batch.
        rows_in_step: rows of an optimiser step.
        timed: measure times as well.

    Raises:
        TsugikiError: a sample of the model cannot be built or trained.
    """
    with loading_errors(config.model):
        model = meta_model(shapes)
    on_processor = device.type == "cpu"
    threads = min(torch.get_num_threads(), math.ceil(rows_in_step / rows)) if on_processor else 1
    trains_all = not METHODS[config.method].trains_adapter
    parameters = sum(parameter.numel() for parameter in model.parameters())
    gguf = stored_path(config.model) if base_dtype == "stored" else None
    words, width = model.get_input_embeddings().weight.shape
    tokens = tokens_of_row(config, model)
    try:
        sample = sample_model(shapes, blocks_of_sample(model), base_dtype, gguf)
        itemsize = sample.dtype.itemsize
        measured = measure(sample, config, device, rows, tokens, threads, words, timed)
        trainable = parameters if trains_all else _trainable(config, model)
    except TsugikiError:
        raise
    except BaseException as error:
        if not is_ordinary(error):
            raise
        raise TsugikiError(
            _("{model}: blocks of this model cannot be measured ({error})").format(
                model=config.model, error=error_text(error) or type(error).__name__
            )
        ) from error
    del sample
    if trains_all:
        base = parameters * itemsize
    else:
        base = base_bytes(model, base_dtype) if gguf is None else stored_bytes(gguf)
    head = model.get_output_embeddings()
    logits = min(rows * tokens, rows_per_chunk(head, itemsize)) * words * itemsize if head is not None else 0
    return Need(
        parameters=parameters,
        trainable=trainable,
        blocks=len(decoder_blocks(model)),
        base=base,
        loading=loading_bytes(model, base_dtype) if on_processor else 0,
        process=_process(device),
        loss=logits + 4 * rows * tokens * width * itemsize,
        threads=threads,
        measured=measured,
        recomputation=_COMPILER if on_processor and "torch._dynamo" not in sys.modules else 0,
    )


def _process(device: torch.device) -> int:
    """Return the bytes of the process without a model, now that what a run imports has been imported."""
    gc.collect()
    memory.reset_peak(device)  # returns freed memory to the system
    return memory.resident(device) or 0


def _trainable(config: RunConfig, model: "PreTrainedModel") -> int:
    """Return how many parameters train. This grafts `model`, which must not be used afterwards."""
    METHODS[config.method].prepare(model, config.adapter_config, config.base_dropout)
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
