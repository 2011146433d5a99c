"""What a run costs, from measurements of a few blocks of its model with random weights.

    peak = process + base + 16 · trained + start + threads · (activations + transient + loss + 4 · trained)
    activations = kept blocks · what a block keeps + recomputed blocks · its input
    16: a trained parameter, its gradient, and AdamW's two averages, in float32; 4: its gradient for one micro-batch
    start: 4 · trained if the run keeps a copy of its first values, as of an adapter or of a narrow model
    threads: micro-batches that are computed at a time, one on an accelerator
    process: Python, the imported libraries and oneDNN's kernels, which take no memory of an accelerator; recomputing
        imports more

In full fine-tuning all weights train, and the copy that computes in 16 bits is the base; there is none in 32 bits.
`benchmarks.memory.planning` compares the result with runs.

    step = blocks · (forward and backward pass of a block) + loss with the whole vocabulary

What is measured is the model of `config.json` with 1 to 6 blocks and 8192 words, grafted, with fast paths: a forward
and a backward pass. Neither speed nor memory depends on the values of the weights, so none are read from the model's
files. The input requires a gradient, as the input of every block except the first one does.
"""

import copy
import gc
import math
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from tsugiki.annotations import PretrainedConfig, PreTrainedModel
from tsugiki.dtypes import BaseDtype, ComputeDtype, preferred_compute_dtype, quantized_dtype, torch_dtype
from tsugiki.errors import TsugikiError, error_text, is_ordinary
from tsugiki.fast.forward import has_chunked_loss, head_of
from tsugiki.fast.head import Head
from tsugiki.fast.loss import chunked_loss, plain_loss, rows_per_chunk
from tsugiki.fast.paths import use_fast_paths
from tsugiki.lora.hold import is_grafted
from tsugiki.lowbit.int8 import Int8Linear
from tsugiki.lowbit.nf4 import Nf4Linear
from tsugiki.lowbit.quantization import LayerDtype, is_quantizable, layer_dtype, quantized_layer
from tsugiki.methods.table import METHODS
from tsugiki.model.inference import decoder_blocks
from tsugiki.model.linear import features
from tsugiki.model.meta import meta_model, model_without_weights
from tsugiki.model.ungrafted import find_stacks
from tsugiki.training.measure.shapes import Shapes
from tsugiki.training.model.trainable import NARROW, make_trainable
from tsugiki.training.settings.config import RunConfig
from tsugiki.training.tools import memory
from tsugiki.training.tools.processes import has_device, planned_compute_dtype, run_in_threads

Result = TypeVar("Result")

_COMPILER = 68_000_000
"""Bytes of PyTorch's compiler, which PyTorch imports when the first block is recomputed."""
_LATER, _KERNELS, _KERNEL = 20_000_000, 30_000_000, 300_000
"""Bytes of what a run imports and reads after its model, of oneDNN's kernels for products that a sample has not, and of
a kernel of an expert."""
_REPEATS = 3
_STORED: dict[LayerDtype, Callable[[int, int], int]] = {"int8": Int8Linear.stored_bytes, "nf4": Nf4Linear.stored_bytes}


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
    keeps_start: bool = True
    """Whether the run keeps a copy of the trained values before its first step."""
    head: int = 0
    """Number of parameters of an adapter of the output head that the run may train as well."""
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
        trained = self.trainable + self.head
        return {
            "process": self.process + (self.recomputation if recomputed else 0),
            "base": self.base,
            "adapter": 4 * trained * (2 if self.keeps_start else 1),
            "gradients": 4 * trained * (1 + self.threads),
            "optimizer": 8 * trained,
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

    `base_dtype` is the dtype of the base; for full fine-tuning, of the copy that computes. A micro-batch has `rows`
    rows, an optimiser step `rows_in_step`. `timed`: measure times as well. If this machine does not have the `device`,
    its processor computes what the device would, and the memory that is needed for a moment is that of the processor.
    """
    model = shapes.model
    here, compute_dtype = device if has_device(device.type) else torch.device("cpu"), planned_compute_dtype(device)
    on_processor = device.type == "cpu"
    threads = min(torch.get_num_threads(), math.ceil(rows_in_step / rows)) if on_processor else 1
    trains_all = not METHODS[config.method].trains_adapter
    words, width = model.get_input_embeddings().weight.shape
    tokens = shapes.row_tokens
    try:
        sample = sample_model(shapes.config, blocks_of_sample(model), base_dtype, compute_dtype)
        itemsize = sample.dtype.itemsize
        prepare_sample(sample, config, device, here)
        measured = measure_blocks(sample, here, rows, tokens, threads, words, timed)
        trainable = shapes.parameters if trains_all else _trainable(config, meta_model(shapes.config))
    except TsugikiError:
        raise
    except BaseException as error:
        if not is_ordinary(error):
            raise
        raise TsugikiError(
            "{model}: blocks of this model cannot be measured ({error})",
            model=config.model,
            error=error_text(error) or type(error).__name__,
        ) from error
    del sample
    if trains_all:
        base = shapes.parameters * itemsize if itemsize < 4 else 0
    else:
        base = base_bytes(model, base_dtype, compute_dtype)
    head = model.get_output_embeddings()
    process = _LATER + kernel_bytes(model, rows * tokens, itemsize) if on_processor else 0
    # A step may compute a part of the logits (`sampled_softmax`), but evaluations compute all of them.
    logits = min(rows * tokens, rows_per_chunk(words, itemsize)) * words * itemsize if head is not None else 0
    # Where the embedding is the head, both give it a gradient, and these are added.
    is_tied = head is not None and head.weight is model.get_input_embeddings().weight
    twice = 2 * words * width * itemsize if trains_all and is_tied else 0
    return Need(
        parameters=shapes.parameters,
        trainable=trainable,
        blocks=len(decoder_blocks(model)),
        base=base,
        loading=loading_bytes(model, base_dtype) if on_processor else 0,
        process=process + (_process(device) if here == device else 0),
        loss=logits + 4 * rows * tokens * width * itemsize + twice,
        threads=threads,
        measured=measured,
        keeps_start=not trains_all or width < NARROW,
        recomputation=_COMPILER if on_processor and "torch._dynamo" not in sys.modules else 0,
    )


def measure_blocks(
    model: PreTrainedModel,
    device: torch.device,
    rows: int,
    tokens: int,
    threads: int,
    vocabulary: int,
    timed: bool,
) -> Measured:
    """Measure the blocks of a sample on the device where it is.

    Args:
        model: from `prepare_sample`.
        rows: rows of a micro-batch.
        tokens: tokens of a row.
        threads: micro-batches that are computed at a time.
        vocabulary: the number of words of the whole model.
        timed: measure times as well; otherwise they are 0.
    """
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
        run_head(model, hidden)
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


def base_bytes(model: nn.Module, base_dtype: BaseDtype, compute_dtype: ComputeDtype | None = None) -> int:
    """Return the bytes of the frozen base in memory, if it is loaded in `base_dtype`.

    `compute_dtype` is that of what a quantised base keeps in 16 or 32 bits; None: the one that this machine prefers.
    The model has its shape and is not grafted; its values are not used. Tied weights count once.
    """
    few_bits = quantized_dtype(base_dtype)
    itemsize = torch_dtype(base_dtype if few_bits is None else compute_dtype or preferred_compute_dtype()).itemsize
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
    counted: set[int] = set()
    total = 0
    for module in model.modules():
        kept_as = None
        if few_bits is not None and is_quantizable(module):
            kept_as = layer_dtype(few_bits, is_head=module is head)
        if kept_as is not None and id(module) not in counted:
            in_features, out_features = features(module)
            total += _STORED[kept_as](out_features, in_features)
            counted.add(id(module))
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in counted and not (kept_as and name == "weight"):
                total += parameter.numel() * itemsize
                counted.add(id(parameter))
    return total


def loading_bytes(model: nn.Module, base_dtype: BaseDtype) -> int:
    """Return the bytes that loading in `base_dtype` needs besides the finished model.

    This is the size of the largest tensor that is stored in another dtype. With a quantised base, it is the size of the
    largest tensor to quantise, in float32: the embedding, and a head that keeps 16 bits, are read in the dtype that
    they keep, and a head that is tied to the embedding is quantised from it. The model has the shape and the dtype of
    its files, and is not grafted; its values are not used.

    Stacked experts are loaded by transformers, which needs about the size of the model again to stack them.
    """
    if find_stacks(dict(model.named_modules())):
        return base_bytes(model, base_dtype)
    embedding: Any = model.get_input_embeddings().weight  # type: ignore[operator]
    few_bits = quantized_dtype(base_dtype)
    if few_bits is not None:
        head = model.get_output_embeddings()  # type: ignore[operator]
        layers: list[Any] = [
            module.weight
            for module in model.modules()
            if is_quantizable(module) and layer_dtype(few_bits, is_head=module is head) is not None
        ]
        return max((4 * weight.numel() for weight in layers if weight is not embedding), default=0)
    dtype = torch_dtype(base_dtype)
    return max((weight.nbytes for weight in model.parameters() if weight.dtype != dtype), default=0)


def kernel_bytes(model: nn.Module, tokens: int, itemsize: int) -> int:
    """Return the bytes of oneDNN's kernels, which compute in 16 bits: for experts, one for each product and row number.

    An expert has gate and up in one product and down in another, forward and backward, and eight numbers of up to 64
    rows, and four more each time that the rows double (see `fast.paths`).
    """
    if itemsize == 4:
        return 0
    if not find_stacks(dict(model.named_modules())):
        return _KERNELS
    return _KERNELS + 4 * (8 + 4 * math.ceil(math.log2(max(1, tokens / 64)))) * _KERNEL


def _process(device: torch.device) -> int:
    """Return the bytes of the process without a model, now that what a run imports has been imported."""
    gc.collect()
    memory.reset_peak(device)  # returns freed memory to the system
    return memory.resident(device) or 0


def _trainable(config: RunConfig, model: PreTrainedModel) -> int:
    """Return how many parameters train. This grafts `model`, which must not be used afterwards."""
    METHODS[config.method].prepare(model, config.adapter_config, base_dropout=config.base_dropout)
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
        return tensor.detach()  # an output that its own graph keeps, as of softmax, would never be freed

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = forward()
    known = {tensor.untyped_storage().data_ptr() for tensor in besides}
    del result
    return sum(size for place, size in kept.items() if place not in known)


_WORDS = 8192  # the time of the loss is in proportion to the number of words
_MOST_BLOCKS = 6  # Gemma 3 repeats a pattern of six
_PARAMETERS = 40_000_000
"""Largest number of parameters of a sample with several blocks: small blocks are measured together."""
_PATTERN = 1 << 20


def sample_model(
    config: PretrainedConfig,
    blocks: int,
    base_dtype: BaseDtype,
    compute_dtype: ComputeDtype | None = None,
) -> PreTrainedModel:
    """Build the first `blocks` blocks of a model, whose config is given, with random weights in the dtype of a run.

    `compute_dtype` is that of what a quantised base keeps in 16 or 32 bits; None: the one that this machine prefers.
    """
    model = model_without_weights(_sample_config(config, blocks))
    quantized = quantized_dtype(base_dtype) is not None
    dtype = torch_dtype((compute_dtype or preferred_compute_dtype()) if quantized else base_dtype)
    pattern = torch.randn(_PATTERN, generator=torch.Generator().manual_seed(0)).mul_(0.02).to(dtype)
    head = model.get_output_embeddings()
    for path, module in list(model.named_modules()):
        for name, parameter in list(module.named_parameters(recurse=False)):
            value = _filled(parameter, pattern)
            module._parameters[name] = nn.Parameter(value, requires_grad=False)
        if quantized and module is not head and is_quantizable(module):
            model.set_submodule(path, quantized_layer(path, module, dtype, "int8" if base_dtype == "int8" else "nf4"))
    model.tie_weights()
    if head is not None and base_dtype in ("int8", "nf4-int8"):
        # The head comes last: `tie_weights` may give it the weight of the embedding, of which int8 needs a copy.
        path = next(path for path, module in model.named_modules() if module is head)
        model.set_submodule(path, quantized_layer(path, head, dtype, "int8"))
    config_of: Any = model.config
    config_of.dtype = dtype
    return model


def _sample_config(config: PretrainedConfig, blocks: int) -> PretrainedConfig:
    """Return a copy of a config for its first blocks, with a small vocabulary and without quantisation."""
    short = copy.deepcopy(config)
    text = short.get_text_config()
    whole, text.num_hidden_layers = text.num_hidden_layers, blocks
    for name, value in vars(text).items():
        if isinstance(value, list | tuple) and len(value) == whole:  # one entry for each block
            setattr(text, name, value[:blocks])
    text.vocab_size = min(_WORDS, text.vocab_size)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(text, name, None)
    short.quantization_config = None
    short._name_or_path = ""  # of the files, whose vocabulary has another size
    return short


def blocks_of_sample(model: nn.Module) -> int:
    """Return how many blocks a sample of this model should have; the shapes of the model are enough."""
    blocks = decoder_blocks(model)
    size = max(1, sum(parameter.numel() for parameter in blocks[0].parameters()))
    return min(len(blocks), _MOST_BLOCKS, max(1, _PARAMETERS // size))


def prepare_sample(model: PreTrainedModel, config: RunConfig, device: torch.device, here: torch.device) -> None:
    """Prepare a sample in place as a run prepares its model for `device`, and move it to the device `here`."""
    model.to(here)
    make_trainable(model, config, device)
    if not is_grafted(model):
        use_fast_paths(model)
    elif device.type != "cpu":
        use_fast_paths(model, modules=False, loss=False)  # as `training.step.setup.make_gradients` does
    model.train()


def forward(model: PreTrainedModel, rows: int, tokens: int) -> tuple[Tensor, Tensor]:
    """Compute the blocks of a prepared sample for random hidden states, and return these and the result."""
    x = hidden_states(model, rows, tokens)
    return x, model.base_model(inputs_embeds=x, use_cache=False)[0]


def backward(model: PreTrainedModel, x: Tensor, y: Tensor) -> None:
    """Compute the gradients of `y`, from `forward`, in `x` and in all weights that train."""
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # A scalar, as in training: with `grad_outputs` PyTorch imports SymPy, whose memory a run does not take.
    torch.autograd.grad(y.sum(), [x, *weights], allow_unused=True)


def run_head(model: PreTrainedModel, hidden: Tensor) -> None:
    """Compute the loss of hidden states with the output head of a prepared sample, and its gradient, to measure it."""
    labels = torch.randint(len(model.get_input_embeddings().weight), hidden.shape[:2], device=hidden.device)
    if has_chunked_loss(model):
        summed = chunked_loss(hidden, head_of(model), labels)
    else:
        summed = plain_loss(hidden, Head(model.get_output_embeddings()), labels)
    torch.autograd.grad(summed, hidden)


def hidden_states(model: PreTrainedModel, rows: int, tokens: int) -> Tensor:
    """Return random hidden states for a sample, [rows, tokens, width], which require a gradient."""
    width = model.get_input_embeddings().weight.shape[1]
    return torch.randn(rows, tokens, width).to(model.device, model.dtype).requires_grad_()


def _filled(parameter: Tensor, pattern: Tensor) -> Tensor:
    """Return a tensor of this shape that repeats the pattern."""
    value = torch.empty(parameter.numel(), dtype=pattern.dtype)
    for part in torch.split(value, len(pattern)):
        part.copy_(pattern[: len(part)])
    return value.view(parameter.shape)
