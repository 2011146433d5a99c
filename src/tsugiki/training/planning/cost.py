"""What a run costs, from measurements of a few blocks of its model with random weights (see `planning.sample`).

    peak = process + base + 16 · trained + threads · (activations + transient + loss + 4 · trained)
    activations = kept blocks · what a block keeps + recomputed blocks · its input
    16: a trained parameter, its gradient, and AdamW's two averages, in float32; 4: its gradient for one micro-batch
    threads: micro-batches that are computed at a time, one on an accelerator
    process: Python and the imported libraries, which take no memory of an accelerator; recomputing imports more

In full fine-tuning all weights train, and the copy that computes in 16 bits is the base. `benchmarks.planning` compares
the result with runs.

    step = blocks · (forward and backward pass of a block) + loss with the whole vocabulary

Some processors multiply 8-bit integers twice as fast as bfloat16, others hardly faster, and rounding the activations
takes time, so the faster dtype of a frozen base depends on the processor and on the sizes of the layers. Both are timed
by one thread, in turns, and the times are kept in the cache. On held-out text, a run on a base in 8 bits could not be
told from one in bfloat16 for three bases (docs/memory.md). A processor without bfloat16 computes in float32, from which
it could be told.
"""

import gc
import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from tsugiki.base.loading import stored_path
from tsugiki.dtypes import BaseDtype, preferred_compute_dtype
from tsugiki.errors import TsugikiError, error_text, is_ordinary
from tsugiki.fast.loss import rows_per_chunk
from tsugiki.io.digests import combined_digest
from tsugiki.io.measurements import kept_seconds, shortest_seconds
from tsugiki.language import _
from tsugiki.lora.config import LoraConfig
from tsugiki.lowbit.integer_products import exact_integers
from tsugiki.lowbit.threads import with_one_thread
from tsugiki.methods.table import METHODS
from tsugiki.model.inference import decoder_blocks
from tsugiki.model.meta import meta_model
from tsugiki.training import memory
from tsugiki.training.config import RunConfig
from tsugiki.training.planning.sample import (
    backward,
    blocks_of_sample,
    forward,
    hidden_states,
    loss_and_gradient,
    prepare_sample,
    sample_model,
)
from tsugiki.training.planning.shapes import SMALL_MODEL, Shapes, base_bytes, loading_bytes, stored_bytes
from tsugiki.training.threads import run_in_threads

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Result = TypeVar("Result")

_COMPILER = 68_000_000
"""Bytes of PyTorch's compiler, which PyTorch imports when the first block is recomputed."""
_REPEATS = 3
_DTYPES: tuple[BaseDtype, ...] = ("bf16", "int8")
_GAIN = 1.1
"""Integers must be at least this many times as fast as bfloat16."""
_MOST_TOKENS, _LEAST_TOKENS = 256, 32
_MULTIPLICATIONS = 8_000_000_000
"""Of one forward pass through a block: large blocks are measured with fewer tokens."""
_TURNS, _MOST_SECONDS = 5, 0.5


@dataclass(frozen=True)
class Measured:
    """The memory and the time that one block needs for a micro-batch."""

    kept: int
    """Bytes that it keeps for its backward pass."""
    input: int
    """Bytes of its input, which is all that a recomputed block keeps."""
    transient: int
    """Bytes that are needed only while a block is computed, in addition to those that are kept."""
    forward: float
    """Seconds of the forward pass, with as many micro-batches at a time as the run computes."""
    backward: float
    """Seconds of the backward pass."""
    loss: float
    """Seconds of the loss with the whole vocabulary and of its gradient, likewise."""


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
    shapes: Shapes,
    base_dtype: BaseDtype,
    device: torch.device,
    rows: int,
    rows_in_step: int,
    timed: bool = False,
) -> Need:
    """Return the memory that a run needs, from measurements of a few blocks of its model.

    Args:
        base_dtype: dtype of the base; for full fine-tuning, of the copy that computes.
        rows: rows of a micro-batch.
        rows_in_step: rows of an optimiser step.
        timed: measure times as well.

    Raises:
        TsugikiError: a sample of the model cannot be built or trained.
    """
    model = shapes.model
    on_processor = device.type == "cpu"
    threads = min(torch.get_num_threads(), math.ceil(rows_in_step / rows)) if on_processor else 1
    trains_all = not METHODS[config.method].trains_adapter
    gguf = stored_path(config.model) if base_dtype == "stored" else None
    words, width = model.get_input_embeddings().weight.shape
    tokens = shapes.row_tokens
    try:
        sample = sample_model(shapes.config, blocks_of_sample(model), base_dtype, gguf)
        itemsize = sample.dtype.itemsize
        measured = measure(sample, config, device, rows, tokens, threads, words, timed)
        trainable = shapes.parameters if trains_all else _trainable(config, meta_model(shapes.config))
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
        base = shapes.parameters * itemsize
    else:
        base = base_bytes(model, base_dtype) if gguf is None else stored_bytes(gguf)
    head = model.get_output_embeddings()
    logits = min(rows * tokens, rows_per_chunk(head, itemsize)) * words * itemsize if head is not None else 0
    return Need(
        parameters=shapes.parameters,
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


def measure(
    model: "PreTrainedModel",
    config: RunConfig,
    device: torch.device,
    rows: int,
    tokens: int,
    threads: int,
    vocabulary: int,
    timed: bool,
) -> Measured:
    """Measure the blocks of a sample, which is prepared as the run prepares its model.

    Args:
        model: from `sample_model`; it is changed in place, and moved to the device.
        config: the settings of the run.
        device: where the run computes.
        rows: rows of a micro-batch.
        tokens: tokens of a row.
        threads: micro-batches that are computed at a time.
        vocabulary: the number of words of the whole model.
        timed: measure times as well; otherwise they are 0.
    """
    prepare_sample(model, config, device)
    words, width = model.get_input_embeddings().weight.shape
    count = len(decoder_blocks(model))

    def both() -> tuple[float, float]:
        started = time.perf_counter()
        x, y = forward(model, rows, tokens)
        _wait_for(device)
        middle = time.perf_counter()
        backward(model, x, y)
        _wait_for(device)
        return middle - started, time.perf_counter() - middle

    def loss() -> float:
        hidden = hidden_states(model, rows, tokens)
        started = time.perf_counter()
        loss_and_gradient(model, hidden)
        _wait_for(device)
        return time.perf_counter() - started

    # This also fills caches, and allocates memory that is reused.
    kept = _kept_bytes(partial(forward, model, rows, tokens), model.parameters())
    memory.reset_peak(device)
    before = memory.resident(device) or 0
    both()
    transient = max(0, (memory.peak(device) or 0) - before - kept)
    forward_time = backward_time = loss_time = 0.0
    if timed:
        # Medians, because a thread is faster while the others have finished already.
        forward_time, backward_time = map(median, zip(*_repeated(both, threads), strict=True))
        if model.get_output_embeddings() is not None:
            loss_time = median(_repeated(loss, threads)) * vocabulary / words
    input_bytes = rows * tokens * width * model.dtype.itemsize
    return Measured(kept // count, input_bytes, transient, forward_time / count, backward_time / count, loss_time)


def leaves_dtype_open(config: RunConfig) -> bool:
    """Return whether the settings and the processor leave the dtype of the base to a measurement.

    They do for plain LoRA, for which bases in 8 bits and in bfloat16 were compared, if the processor multiplies
    bfloat16, and 8-bit integers exactly.
    """
    adapter = config.adapter_config
    return (
        config.base_dtype is None
        and config.add_tokens is None
        and not config.trust_remote_code
        and not config.trains_base_parameters()
        and isinstance(adapter, LoraConfig)
        and adapter.init_lora_weights is True
        and not adapter.use_dora
        and not adapter.trainable_token_indices
        and preferred_compute_dtype(torch.device("cpu")) == "bf16"
        and exact_integers()
    )


def seconds_of_dtypes(config: RunConfig, shapes: Shapes) -> dict[str, float] | None:
    """Return base dtype -> CPU seconds of the forward and backward pass of some tokens, on a processor.

    The times are read from the cache if they are in it. Returns None for small models, for models that are not stored
    as floats, and for those that cannot be measured; errors in an adapter are reported by the run itself.

    Args:
        config: the settings of the run.
        shapes: the shapes of the model.
    """
    if shapes.parameters < SMALL_MODEL or getattr(shapes.config, "quantization_config", None) is not None:
        return None
    try:
        key = combined_digest(
            {
                "shapes": shapes.config.to_json_string(),
                "adapter": repr(config.adapter_config),
                "tokens": f"{config.block_size}",
            }
        )
        return kept_seconds(f"training, {key}", partial(_measure_dtypes, config, shapes))
    except BaseException as error:  # transformers' models raise errors of all kinds
        if not is_ordinary(error):
            raise
        return None


def faster_dtype(seconds: Mapping[str, float]) -> BaseDtype:
    """Return the dtype for a base: `int8` if it is clearly faster than `bf16`."""
    return "int8" if seconds["bf16"] >= _GAIN * seconds["int8"] else "bf16"


def _process(device: torch.device) -> int:
    """Return the bytes of the process without a model, now that what a run imports has been imported."""
    gc.collect()
    memory.reset_peak(device)  # returns freed memory to the system
    return memory.resident(device) or 0


def _trainable(config: RunConfig, model: "PreTrainedModel") -> int:
    """Return how many parameters train. This grafts `model`, which must not be used afterwards."""
    METHODS[config.method].prepare(model, config.adapter_config, config.base_dropout)
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _repeated(timed: Callable[[], Result], threads: int) -> list[Result]:
    """Call a function several times in all threads at once, and return all results."""
    return [result for _ in range(_REPEATS) for result in run_in_threads([timed] * threads)]


def _wait_for(device: torch.device) -> None:
    """Wait until a device has computed everything; a processor computes at once."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize()


def _kept_bytes(forward: Any, besides: Iterable[Tensor]) -> int:
    """Return the bytes of the tensors that a forward pass saves, each storage once, without those in `besides`."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = forward()
    known = {tensor.untyped_storage().data_ptr() for tensor in besides}
    del result
    return sum(size for place, size in kept.items() if place not in known)


@with_one_thread()
def _measure_dtypes(config: RunConfig, shapes: Shapes) -> dict[str, float]:
    samples = {dtype: _sample(config, shapes, dtype) for dtype in _DTYPES}
    whole, sample = shapes.model, samples["bf16"]
    block = sum(parameter.numel() for parameter in decoder_blocks(whole)[0].parameters())
    tokens = max(_LEAST_TOKENS, min(_MOST_TOKENS, _MULTIPLICATIONS // block))
    row = min(tokens, shapes.row_tokens)
    blocks, losses = (
        shortest_seconds(
            {dtype: partial(compute, sample, tokens // row, row) for dtype, sample in samples.items()},
            _TURNS,
            _MOST_SECONDS,
        )
        for compute in (_blocks, _loss)
    )
    words, of_sample = (len(model.get_input_embeddings().weight) for model in (whole, sample))
    return {dtype: len(decoder_blocks(whole)) * blocks[dtype] + losses[dtype] * words / of_sample for dtype in _DTYPES}


def _sample(config: RunConfig, shapes: Shapes, dtype: BaseDtype) -> "PreTrainedModel":
    sample = sample_model(shapes.config, 1, dtype)
    prepare_sample(sample, config, torch.device("cpu"))
    return sample


def _blocks(sample: "PreTrainedModel", rows: int, tokens: int) -> None:
    backward(sample, *forward(sample, rows, tokens))


def _loss(sample: "PreTrainedModel", rows: int, tokens: int) -> None:
    loss_and_gradient(sample, hidden_states(sample, rows, tokens))
