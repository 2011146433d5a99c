"""Quantising the frozen layers of a whole model to 8 bits."""

import warnings
from typing import TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import nn

from tsugiki.base.int8 import Int8Linear, exact_integers
from tsugiki.lora.frozen_layer import is_conv1d

Model = TypeVar("Model", bound=nn.Module)
_ADDED = "_tsugiki_added_parameters"
"""The attribute of a quantised model that counts the numbers which quantising has added to its parameters."""


def quantize(model: Model, dtype: torch.dtype = torch.bfloat16) -> Model:
    """Freeze `model` and replace each of its linear layers, the output head included, by an `Int8Linear`.

    This is done layer by layer, so at most one float weight is in memory beyond those that the caller holds. Weights
    loaded with `from_pretrained(…, dtype="auto")` are pages of the file, so the model is never in memory as floats.

    Embedding tables stay as they are, because they are not multiplied with. An output head that is tied to one gets
    quantised values of its own, half the size of a bfloat16 table; the two do not share memory any more, and
    `tie_weights` has nothing to tie. All other parameters (tables, norms, biases) are cast to `dtype`; buffers stay as
    they are. Quantise before grafting. The result is not meant to be saved: its state dict has `qweight` and `scale` in
    the place of weights.

    Args:
        model: changed in place.
        dtype: of the activations; float32, float16 or bfloat16.

    Returns:
        The same model.
    """
    if torch.accelerator.current_accelerator(check_available=True) is None and not exact_integers():
        warnings.warn(
            "this processor cannot multiply 8-bit integers exactly (it has no VNNI): int8 saves memory here, but it is "
            "slow",
            stacklevel=2,
        )
    before = sum(parameter.numel() for parameter in model.parameters())
    model.requires_grad_(False)
    layers = [path for path, layer in model.named_modules(remove_duplicate=False) if is_quantizable(layer)]
    done: WeakKeyDictionary[nn.Module, Int8Linear] = WeakKeyDictionary()  # a layer may be in several places
    for path in layers:
        parent, _, child = path.rpartition(".")
        layer = model.get_submodule(path)
        if not isinstance(layer, Int8Linear):
            if layer not in done:
                done[layer] = Int8Linear.from_layer(layer, dtype)
            model.get_submodule(parent).register_module(child, done[layer])
    quantized = {id(p) for module in model.modules() if isinstance(module, Int8Linear) for p in module.codes()}
    for parameter in model.parameters():
        if id(parameter) not in quantized:
            parameter.data = parameter.data.to(dtype)
    config = getattr(model, "config", None)
    if config is not None:
        config.dtype = dtype
    setattr(model, _ADDED, sum(parameter.numel() for parameter in model.parameters()) - before)
    return model


def count_parameters(model: nn.Module) -> int:
    """Return the number of parameters of a model; of a quantised one as many as it had before.

    A quantised model holds more numbers: the scales, and the head's own values if it was tied to the embedding.
    """
    return sum(parameter.numel() for parameter in model.parameters()) - int(getattr(model, _ADDED, 0))


def is_quantizable(layer: nn.Module) -> bool:
    """Whether an `Int8Linear` can replace the layer: `nn.Linear` and transformers' `Conv1D`."""
    return isinstance(layer, nn.Linear) or is_conv1d(layer)
