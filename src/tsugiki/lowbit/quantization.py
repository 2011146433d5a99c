"""Quantising the frozen layers of a whole model to 8 or 4 bits."""

from collections.abc import Mapping
from typing import Literal, TypeAlias, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import nn

from tsugiki.dtypes import QuantizedDtype
from tsugiki.errors import TsugikiError, warn_caller
from tsugiki.language import _
from tsugiki.lowbit.int8 import Int8Linear
from tsugiki.lowbit.integer_products import exact_integers
from tsugiki.lowbit.nf4 import Nf4Linear
from tsugiki.lowbit.quantized_layer import QuantizedLayer
from tsugiki.model.linear import is_conv1d

LayerDtype: TypeAlias = Literal["int8", "nf4"]
LAYERS: Mapping[LayerDtype, type[QuantizedLayer]] = {"int8": Int8Linear, "nf4": Nf4Linear}
"""The quantised layer of each dtype."""
Model = TypeVar("Model", bound=nn.Module)
_ADDED = "_tsugiki_added_parameters"
"""The attribute of a quantised model that holds by how much quantising has increased its number of elements."""


def quantize(model: Model, dtype: torch.dtype = torch.bfloat16, base_dtype: QuantizedDtype = "int8") -> Model:
    """Freeze `model` and replace its linear layers by quantised ones: `Int8Linear` or `Nf4Linear`.

    This is done layer by layer, so at most one float weight is in memory beyond those that the caller holds.

    Embedding tables stay as they are, because they are not multiplied with. In 8 bits, the output head is quantised as
    well. If it is tied to an embedding, it gets quantised values of its own, half the size of a bfloat16 table; the two
    do not share memory any more, and `tie_weights` has nothing to tie. In 4 bits, the head stays as it is, because it
    decides between words that are nearly as likely; with `nf4-int8` it has 8 bits. All other parameters (tables, norms,
    biases) are cast to `dtype`; buffers stay as they are. Quantise before grafting. The result is not meant to be
    saved: its state dict has the quantised values and their scales in the place of weights.

    Args:
        model: changed in place; layers that are quantised already stay as they are.
        dtype: the dtype of the activations; float32, float16 or bfloat16.
        base_dtype: `int8`, `nf4` or `nf4-int8`.

    Returns:
        The same model.

    Raises:
        TsugikiError: a weight is not finite.
    """
    if torch.accelerator.current_accelerator(check_available=True) is None and not exact_integers():
        message = _(
            "this processor cannot multiply 8-bit integers exactly (it has no VNNI): {base_dtype} saves memory "
            "here, but it is slow",
            base_dtype=base_dtype,
        )
        warn_caller(message)
    before = count_parameters(model)
    model.requires_grad_(False)
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
    layers = [path for path, layer in model.named_modules(remove_duplicate=False) if is_quantizable(layer)]
    done: WeakKeyDictionary[nn.Module, QuantizedLayer] = WeakKeyDictionary()  # a layer may be in several places
    for path in layers:
        parent, _dot, child = path.rpartition(".")
        layer = model.get_submodule(path)
        kept_as = layer_dtype(base_dtype, is_head=layer is head)
        if kept_as is not None and not isinstance(layer, QuantizedLayer):
            if layer not in done:
                done[layer] = quantized_layer(path, layer, dtype, kept_as)
            model.get_submodule(parent).register_module(child, done[layer])
    quantized = {id(p) for module in model.modules() if isinstance(module, QuantizedLayer) for p in module.codes()}
    for parameter in model.parameters():
        if id(parameter) not in quantized:
            parameter.data = parameter.data.to(dtype)
    config = getattr(model, "config", None)
    if config is not None:
        config.dtype = dtype
    note_parameters(model, before)
    return model


def layer_dtype(base_dtype: QuantizedDtype, is_head: bool) -> LayerDtype | None:
    """Return the dtype of a linear layer, which may be the output head; None if it is not quantised."""
    if base_dtype == "int8" or not is_head:
        return "int8" if base_dtype == "int8" else "nf4"
    return "int8" if base_dtype == "nf4-int8" else None


def note_parameters(model: nn.Module, count: int) -> None:
    """Record how many parameters a quantised model had before, for `count_parameters`."""
    setattr(model, _ADDED, sum(parameter.numel() for parameter in model.parameters()) - count)


def quantized_layer(path: str, layer: nn.Module, dtype: torch.dtype, kept_as: LayerDtype) -> QuantizedLayer:
    """Return a quantised layer for the `nn.Linear` or `Conv1D` at `path`; `dtype` is that of the activations."""
    quantized = LAYERS[kept_as].from_layer(layer, dtype)
    if not quantized.scale.isfinite().all():
        raise TsugikiError(
            "{path} has weights that are not finite, so it cannot be stored as {base_dtype}: the file is "
            "damaged, or the model was trained badly",
            path=path,
            base_dtype=kept_as,
        )
    return quantized


def count_parameters(model: nn.Module) -> int:
    """Return the number of parameters of a model; for a quantised model, the number before quantising.

    The tensors of a quantised model have another number of elements: a byte may hold two codes, there are scales, and a
    head that was tied to the embedding may have values of its own.
    """
    return sum(parameter.numel() for parameter in model.parameters()) - int(getattr(model, _ADDED, 0))


def is_quantizable(layer: nn.Module) -> bool:
    """Return whether a quantised layer can replace the layer: `nn.Linear` and transformers' `Conv1D`."""
    return isinstance(layer, nn.Linear) or is_conv1d(layer)
