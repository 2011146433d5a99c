"""Faster products of linear layers while text is generated, when each product has only a few rows."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn

from tsugiki.base.few_rows import few_rows_product
from tsugiki.lora.frozen_layer import is_conv1d, is_hooked, linear_of_matrix
from tsugiki.lora.swap import Undo, replace_forward, undo_all
from tsugiki.native import native


@contextmanager
def fast_generation(model: nn.Module) -> Iterator[None]:
    """Within the block, the model's linear layers in bfloat16 multiply few rows by `few_rows_product`.

    The results are equal up to rounding. Layers with hooks and subclasses of `nn.Linear` do not change; quantised
    layers always use `integer_product`. Only the `forward` of layers is replaced, so adapters can be added, switched
    and removed within the block.
    """
    undo: list[Undo] = []
    try:
        if native("few_rows", "bfloat16") is not None:
            for layer in model.modules():
                if not (type(layer) is nn.Linear or is_conv1d(layer)) or is_hooked(layer):
                    continue
                if layer.weight.dtype == torch.bfloat16:
                    replace_forward(layer, partial(linear_of_matrix, layer, product=few_rows_product), undo)
        yield
    finally:
        undo_all(undo)
