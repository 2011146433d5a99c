"""Faster linear layers and norms in bfloat16 while text is generated, when each of them gets only a few rows."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from tsugiki.fast.modules import rms_norm_of, takes_one_tensor
from tsugiki.fast.norms import generated_rms_norm
from tsugiki.lowbit.few_rows import few_rows_product
from tsugiki.model.inference import seeded
from tsugiki.model.linear import is_conv1d, is_hooked, linear_of_matrix
from tsugiki.model.undo import Undo, replace_forward, undo_all
from tsugiki.native import native


@contextmanager
def fast_generation(model: nn.Module) -> Iterator[None]:
    """Within the block, C functions compute RMSNorm and the products of few rows, where the weights are in bfloat16.

    The results are equal up to rounding (see `few_rows_product` and `generated_rms_norm`). Layers with hooks and
    subclasses of `nn.Linear` do not change; quantised layers always use `integer_product`. Only the `forward` of
    modules is replaced, so adapters can be added, switched and removed within the block.
    """
    undo: list[Undo] = []
    try:
        if native("few_rows", "bfloat16") is not None:
            with torch.no_grad(), seeded(0):
                for module in model.modules():
                    _replace(module, undo)
        yield
    finally:
        undo_all(undo)


def _replace(module: nn.Module, undo: list[Undo]) -> None:
    weight = module._parameters.get("weight")
    if weight is None or weight.dtype != torch.bfloat16 or is_hooked(module):
        return
    if type(module) is nn.Linear or is_conv1d(module):
        replace_forward(module, partial(linear_of_matrix, module, product=few_rows_product), undo)
    elif takes_one_tensor(module) and (found := rms_norm_of(module)) is not None:
        replace_forward(module, partial(_norm, module, eps=found[0], offset=found[1]), undo)


def _norm(module: nn.Module, x: Tensor, eps: str, offset: float) -> Tensor:
    return generated_rms_norm(x, module.weight, getattr(module, eps), offset)  # type: ignore[arg-type]
