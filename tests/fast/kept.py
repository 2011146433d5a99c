"""The memory that a forward pass keeps for the backward pass."""

from collections.abc import Callable, Iterable
from typing import Any

import torch


def kept_bytes(forward: Callable[[], Any], besides: Iterable[torch.Tensor] = ()) -> int:
    """Return the bytes of the kept tensors, each storage once, without those in `besides`, such as weights."""
    kept = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = forward()
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in kept}
    del out
    return sum(storages[place] for place in storages.keys() - {t.untyped_storage().data_ptr() for t in besides})
