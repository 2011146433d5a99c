"""Dropout masks that cost little: random bits compared with a threshold, applied by a bitwise and.

Drawing `bernoulli` and multiplying takes 12 to 19 % of a LoRA step on a processor. Here each element gets 16 random
bits from NumPy's SFC64 and is kept where these, as a number, are not below 65,536 p; so p is honoured to 1/65,536.
The mask is a byte for each element, all bits set where it is kept, none where it is dropped; applied, it is widened to
the element's bits. The factor 1 / (1 - p) is left to the caller, who has a scale to put it into.

The seed of each mask comes from torch's generator, so `torch.manual_seed` decides it, and activation checkpointing,
which restores that generator, draws the same mask again; but not within `masks_from`, whose generator it does not know.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

_LEVELS = 1 << 16
_INTEGER = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes an element
_local = threading.local()


@contextmanager
def masks_from(generator: torch.Generator | None) -> Iterator[None]:
    """Within the block this thread's seeds come from `generator`; None: from torch's own, as everywhere else.

    Threads that share torch's own generator would draw by turns of luck.
    """
    before = getattr(_local, "generator", None)
    _local.generator = generator
    try:
        yield
    finally:
        _local.generator = before


def keep_mask(like: Tensor, p: float) -> Tensor:
    """A mask for `apply_mask`, int8 of the shape and device of `like`; each element is dropped with probability `p`."""
    if like.device.type != "cpu":  # an accelerator draws numbers quickly
        return -(torch.rand(like.shape, device=like.device) >= p).to(torch.int8)
    seed = int(torch.randint(1 << 62, (), generator=getattr(_local, "generator", None)))
    words = np.random.SFC64(seed).random_raw((like.numel() + 3) // 4)
    drawn = torch.from_numpy(words.view(np.int16))[: like.numel()].view(like.shape)
    kept = torch.empty(like.shape, dtype=torch.int8)
    threshold = min(round(p * _LEVELS), _LEVELS - 1)  # beyond, 16 bits would wrap and keep all
    return torch.ge(drawn, threshold - _LEVELS // 2, out=kept).neg_()


def apply_mask(x: Tensor, mask: Tensor, out: Tensor | None = None) -> Tensor:
    """`x` with the dropped elements zero; into `out`, which may be `x`, or a new tensor."""
    result = torch.empty_like(x, memory_format=torch.contiguous_format) if out is None else out
    bits = _INTEGER[x.element_size()]
    torch.bitwise_and(x.view(bits), mask, out=result.view(bits))
    return result


def dropout(x: Tensor, p: float) -> Tensor:
    """`x` with elements dropped by such a mask and the rest divided by 1 - p; differentiable in `x`."""
    return x * (keep_mask(x, p) != 0) / (1 - p) if p else x
