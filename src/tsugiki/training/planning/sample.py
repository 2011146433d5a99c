"""A few blocks of a model with random weights, to measure what a block of the whole model needs.

    config.json ──> the model with 1 to 6 blocks and 8192 words ──> grafted, with fast paths ──> forward, backward

Neither speed nor memory depends on the values of the weights, so only the types of the tensors in a GGUF file are read
from the model's files. The input requires a gradient, as the input of every block except the first one does.
"""

import copy
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from tsugiki.base.gguf.conversion import read_model_header
from tsugiki.base.gguf.layer import BLOCKS, GgufLinear
from tsugiki.base.gguf.names import llama_cpp_names
from tsugiki.dtypes import BaseDtype, preferred_compute_dtype, quantized_dtype, torch_dtype
from tsugiki.fast.forward import has_chunked_loss, loss_of_hidden_states
from tsugiki.fast.loss import Head, plain_loss
from tsugiki.fast.paths import use_fast_paths
from tsugiki.lora.hold import is_grafted
from tsugiki.lowbit.quantization import is_quantizable, quantized_layer
from tsugiki.model.blocks import decoder_blocks
from tsugiki.model.linear import features
from tsugiki.model.meta import model_without_weights
from tsugiki.training import memory
from tsugiki.training.config import RunConfig
from tsugiki.training.model import prepare_model
from tsugiki.training.threads import run_in_threads

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_WORDS = 8192  # the time of the loss is in proportion to the number of words
_MOST_BLOCKS = 6  # Gemma 3 repeats a pattern of six
_PARAMETERS = 40_000_000
"""Largest number of parameters of a sample with several blocks: small blocks are measured together."""
_GGUF_BLOCK = re.compile(r"blk\.(\d+)\.(.*)")
_PATTERN = 1 << 20
_REPEATS = 3
Result = TypeVar("Result")


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


def sample_model(
    config: "PretrainedConfig", blocks: int, base_dtype: BaseDtype, gguf: Path | None = None
) -> "PreTrainedModel":
    """Build the first blocks of a model with random weights in the dtype of a run.

    Args:
        config: the config of the whole model.
        blocks: number of blocks.
        base_dtype: dtype of the weights.
        gguf: the file whose quantisation is kept if `base_dtype` is stored. The types of the layers are those of blocks
            that are spread evenly over the file, since files such as those called Q4_K_M mix types.
    """
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
    model = model_without_weights(short)
    quantized = base_dtype == "stored" or quantized_dtype(base_dtype) is not None
    dtype = torch_dtype(preferred_compute_dtype() if quantized else base_dtype)
    kinds = _kinds(gguf, model, whole) if base_dtype == "stored" and gguf is not None else {}
    pattern = torch.randn(_PATTERN, generator=torch.Generator().manual_seed(0)).mul_(0.02).to(dtype)
    head, head_path = model.get_output_embeddings(), ""
    for path, module in list(model.named_modules()):
        for name, parameter in list(module.named_parameters(recurse=False)):
            value = _filled(parameter, pattern)
            module._parameters[name] = nn.Parameter(value, requires_grad=False)
        if is_quantizable(module) and kinds.get(f"{path}.weight") in BLOCKS:
            model.set_submodule(path, _stored_layer(module, kinds[f"{path}.weight"], dtype))
        elif module is head:
            head_path = path
        elif quantized_dtype(base_dtype) is not None and is_quantizable(module):
            model.set_submodule(path, quantized_layer(path, module, dtype, "int8" if base_dtype == "int8" else "nf4"))
    model.tie_weights()
    if head_path and base_dtype in ("int8", "nf4-int8"):
        model.set_submodule(head_path, quantized_layer(head_path, model.get_submodule(head_path), dtype, "int8"))
    config_of: Any = model.config
    config_of.dtype = dtype
    return model


def _kinds(path: Path, sample: "PreTrainedModel", whole: int) -> dict[str, str]:
    """Return the types in a GGUF file of the linear layers of a sample, by the names of their weights.

    Args:
        path: the file.
        sample: the first blocks of the model.
        whole: how many blocks the model has.
    """
    header = read_model_header(path)
    kind_of = {tensor.name: tensor.type.name for tensor in header.tensors}
    count = len(decoder_blocks(sample))

    def in_file(name: str) -> str:
        block, rest = match.groups() if (match := _GGUF_BLOCK.fullmatch(name)) else (None, name)
        return rest if block is None else f"blk.{whole * (2 * int(block) + 1) // (2 * count)}.{rest}"

    names = llama_cpp_names(header.architecture, whole, sample.state_dict())
    return {ours: kind_of.get(in_file(theirs), "") for ours, theirs in names.items()}


def _stored_layer(layer: nn.Module, kind: str, dtype: torch.dtype) -> GgufLinear:
    """Return a layer of the same shape in a quantisation of GGUF files, whose weights are all 0."""
    width, out = features(layer)
    numbers, size = BLOCKS[kind]
    blocks = torch.zeros(out, width // numbers * size, dtype=torch.uint8)
    return GgufLinear(blocks, kind, layer.bias, dtype)  # type: ignore[arg-type]


def blocks_of_sample(model: nn.Module) -> int:
    """Return how many blocks a sample should have.

    Args:
        model: the whole model; its shapes are enough.
    """
    blocks = decoder_blocks(model)
    size = max(1, sum(parameter.numel() for parameter in blocks[0].parameters()))
    return min(len(blocks), _MOST_BLOCKS, max(1, _PARAMETERS // size))


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


def prepare_sample(model: "PreTrainedModel", config: RunConfig, device: torch.device) -> None:
    """Prepare a sample in place as a run prepares its model, and move it to the device."""
    model.to(device)
    prepare_model(model, config, device)
    if not is_grafted(model):
        use_fast_paths(model)
    elif device.type != "cpu":
        use_fast_paths(model, modules=False, loss=False)  # as `train.model.make_gradients` does
    model.train()


def forward(model: "PreTrainedModel", rows: int, tokens: int) -> tuple[Tensor, Tensor]:
    """Compute the blocks of a prepared sample for random hidden states, and return these and the result."""
    x = hidden_states(model, rows, tokens)
    return x, model.base_model(inputs_embeds=x, use_cache=False)[0]


def backward(model: "PreTrainedModel", x: Tensor, y: Tensor) -> None:
    """Compute the gradients of `y`, from `forward`, in `x` and in all weights that train."""
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # A scalar, as in training: with `grad_outputs` PyTorch imports SymPy, whose memory a run does not take.
    torch.autograd.grad(y.sum(), [x, *weights], allow_unused=True)


def loss_and_gradient(model: "PreTrainedModel", hidden: Tensor) -> None:
    """Compute the loss of hidden states with the vocabulary of a prepared sample, and its gradient in them."""
    labels = torch.randint(len(model.get_input_embeddings().weight), hidden.shape[:2], device=hidden.device)
    if has_chunked_loss(model):
        summed = loss_of_hidden_states(model, hidden, labels)
    else:
        summed = plain_loss(hidden, Head(model.get_output_embeddings()), labels)
    torch.autograd.grad(summed, hidden)


def hidden_states(model: "PreTrainedModel", rows: int, tokens: int) -> Tensor:
    """Return random hidden states for a sample, [rows, tokens, width], which require a gradient."""
    width = model.get_input_embeddings().weight.shape[1]
    return torch.randn(rows, tokens, width).to(model.device, model.dtype).requires_grad_()


def _repeated(timed: Callable[[], Result], threads: int) -> list[Result]:
    """Call a function several times in all threads at once, and return all results."""
    return [result for _ in range(_REPEATS) for result in run_in_threads([timed] * threads)]


def _wait_for(device: torch.device) -> None:
    """Wait until a device has computed everything; a processor computes at once."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize()


def _filled(parameter: Tensor, pattern: Tensor) -> Tensor:
    """Return a tensor of this shape that repeats the pattern."""
    value = torch.empty(parameter.numel(), dtype=pattern.dtype)
    for part in torch.split(value, len(pattern)):
        part.copy_(pattern[: len(part)])
    return value.view(parameter.shape)


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
