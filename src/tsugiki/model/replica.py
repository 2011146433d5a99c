"""A copy of a model whose parameters have another dtype, such as a 16-bit copy of a float32 model."""

import copy
from typing import TypeVar

import torch
from torch import nn

Model = TypeVar("Model", bound=nn.Module)


def replica_in(dtype: torch.dtype, model: Model) -> Model:
    """Return a copy of `model` whose floating-point parameters have this dtype and whose buffers keep theirs.

    `copy.deepcopy(model).to(dtype)` would round the buffers as well. Rotary frequencies then lose so many digits that
    the angle at position 2,047 is wrong by up to 0.9 rad (heads of 64 channels, base 10,000).
    `from_pretrained(dtype=dtype)` keeps them in float32, and so does this function.
    """
    replica = copy.deepcopy(model)
    for parameter in replica.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    return replica
