"""The shapes of a run's model, and the bytes of its weights in memory, before the weights are loaded."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from tsugiki.base.gguf.file import read_header
from tsugiki.base.gguf.layer import BLOCKS
from tsugiki.base.resolve import load_config, loading_errors
from tsugiki.dtypes import BaseDtype, preferred_compute_dtype, quantized_dtype, torch_dtype
from tsugiki.lowbit.int8 import Int8Linear
from tsugiki.lowbit.integer_products import CHANNELS
from tsugiki.lowbit.nf4 import Nf4Linear
from tsugiki.lowbit.quantization import LayerDtype, is_quantizable, layer_dtype
from tsugiki.model.linear import features
from tsugiki.model.meta import meta_model
from tsugiki.training.config import RunConfig
from tsugiki.training.packing import tokens_of_row

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_STORED: dict[LayerDtype, Callable[[int, int], int]] = {"int8": Int8Linear.stored_bytes, "nf4": Nf4Linear.stored_bytes}


SMALL_MODEL = 50_000_000
"""Models with fewer parameters are not measured before a run, neither their speed nor their memory."""


@dataclass(frozen=True)
class Shapes:
    """The model of a run without its weights."""

    config: "PretrainedConfig"
    model: "PreTrainedModel"
    """The model on torch's meta device, not grafted."""
    parameters: int
    """Number of parameters."""
    row_tokens: int
    """Tokens of a row of the run."""


def find_shapes(config: RunConfig, shapes: "PretrainedConfig | None" = None) -> Shapes:
    """Return the shapes of a run's model.

    Args:
        config: the settings of the run.
        shapes: the config of the model; None: it is read.

    Raises:
        TsugikiError: there is no such model, or `block_size` exceeds its context.
    """
    shapes = shapes or load_config(config.model)
    with loading_errors(config.model):
        model = meta_model(shapes)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Shapes(shapes, model, parameters, tokens_of_row(model, config.block_size, config.virtual_tokens))


def base_bytes(model: nn.Module, base_dtype: BaseDtype) -> int:
    """Return the bytes of the frozen base in memory.

    Args:
        model: a model of its shape, not grafted; its values are not used. Tied weights count once.
        base_dtype: the dtype that it would be loaded in.
    """
    few_bits = quantized_dtype(base_dtype)
    itemsize = torch_dtype(base_dtype if few_bits is None else preferred_compute_dtype()).itemsize
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


def stored_bytes(path: Path) -> int:
    """Return the bytes in memory of a GGUF file whose linear layers stay in their quantisation.

    Raises:
        TsugikiError: the file cannot be read.
    """
    itemsize = torch_dtype(preferred_compute_dtype()).itemsize
    total = 0
    for tensor in read_header(path).tensors:
        is_kept = tensor.type.name in BLOCKS and not tensor.name.endswith("_embd.weight")
        total += tensor.end - tensor.begin if is_kept else math.prod(tensor.shape) * itemsize
        if is_kept:
            total += 4 * (tensor.shape[0] + -(-tensor.shape[0] // CHANNELS) * tensor.shape[1])  # scales and means
    return total


def loading_bytes(model: nn.Module, base_dtype: BaseDtype) -> int:
    """Return the bytes that loading needs besides the finished model.

    This is the size of the largest tensor that is stored in another dtype. With a quantised base, it is the size of the
    largest tensor to quantise, in float32: the embedding, and a head that keeps 16 bits, are read in the dtype that
    they keep, and a head that is tied to the embedding is quantised from it. If the quantisation of a GGUF file is
    kept, the embedding is unpacked to float32.

    Args:
        model: a model of its shape and of the dtype in its files, not grafted; its values are not used.
        base_dtype: the dtype that it would be loaded in.
    """
    embedding: Any = model.get_input_embeddings().weight  # type: ignore[operator]
    if base_dtype == "stored":
        return 4 * int(embedding.numel())
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
