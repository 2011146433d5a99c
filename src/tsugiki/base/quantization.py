"""A whole model's frozen layers in 8 bits."""

import warnings
from typing import TypeVar

import torch
from torch import nn

from tsugiki.base.int8 import Int8Linear, exact_integers, is_linear

Model = TypeVar("Model", bound=nn.Module)


def quantise(model: Model, dtype: torch.dtype = torch.bfloat16) -> Model:
    """Freeze `model` and put an `Int8Linear` in place of each of its linear layers, the output head included.

    Layer by layer, so that of the float weights one is held at a time beyond those that the caller holds: loaded with
    `from_pretrained(…, dtype="auto")` they are pages of the file, and the model is never in memory as floats.

    Embedding tables stay as they are, since nothing is multiplied with them. A head that was tied to one gets codes of
    its own, half the size of a bfloat16 table; the two no longer share memory, and `tie_weights` has nothing to tie.
    What is not a linear layer's weight (tables, norms, biases) is cast to `dtype`; buffers stay as they are.
    Do it before grafting. The layers are called `codes` and `scale` in a state dict: it is no model to be saved.

    Args:
        model: changed in place.
        dtype: of the activations; float32, float16 or bfloat16.

    Returns:
        The same model.
    """
    if not exact_integers():
        warnings.warn(
            "this processor cannot multiply 8-bit integers exactly (no VNNI): int8 saves memory, but it is slow here",
            stacklevel=2,
        )
    model.requires_grad_(False)
    for path in [path for path, layer in model.named_modules(remove_duplicate=False) if is_linear(layer)]:
        parent, _, child = path.rpartition(".")
        model.get_submodule(parent).register_module(child, Int8Linear.from_layer(model.get_submodule(path), dtype))
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    config = getattr(model, "config", None)
    if config is not None:
        config.dtype = dtype
    return model
