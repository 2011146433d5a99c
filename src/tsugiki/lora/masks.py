"""Cheap dropout masks: random bits are compared with a threshold, and the mask is applied by a bitwise and.

Drawing with `bernoulli` and multiplying takes 12 to 19 % of a LoRA step on a processor. Here each element gets 16
random bits from NumPy's SFC64, and is kept if they, as an unsigned number, are at least 65,536 p; so p is exact to
1/65,536. The mask has one byte for each element: all bits are set where the element is kept, none where it is dropped.
To be applied, it is widened to the size of the element. The factor 1 / (1 - p) is left to the caller, which
multiplies by a scale anyway.

An accelerator draws random numbers fast, so there the mask is drawn by torch.

The seed of each mask is drawn from the processor's generator, so `torch.manual_seed` determines it, and activation
checkpointing, which restores that generator, draws the same mask again. Within `masks_from` the seeds come from another
generator, which torch's activation checkpointing does not restore (`fast.recomputation` does).
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

_LEVELS = 1 << 16
_INTEGER = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Bytes of an element -> the integer dtype of this size."""
_local = threading.local()


@contextmanager
def masks_from(*generators: torch.Generator) -> Iterator[None]:
    """Draw the seeds of this thread's masks from `generators` within the block, instead of torch's own generator.

    If threads shared torch's generator, their masks would depend on which thread draws first.

    Args:
        generators: with several, the first axis of a mask is divided into as many equal parts, and each part is drawn
            as if it were the only one. So rows have the same masks whether they are computed together or apart.
    """
    before = getattr(_local, "generators", ())
    _local.generators = generators
    try:
        yield
    finally:
        _local.generators = before


def current_generators() -> tuple[torch.Generator, ...]:
    """Return the generators of `masks_from` in this thread; none outside of it."""
    generators: tuple[torch.Generator, ...] = getattr(_local, "generators", ())
    return generators


def draw_seed(generator: torch.Generator | None = None) -> int:
    """Draw a seed for another generator from `generator`; None: from torch's own."""
    return int(torch.randint(1 << 62, (), generator=generator))


def keep_mask(like: Tensor, p: float) -> Tensor:
    """Draw a mask for `apply_mask`, in which each element is dropped with probability `p`.

    Args:
        like: the mask has its shape and device.
        p: below 1.

    Returns:
        int8: -1 (all bits set) where the element is kept, 0 where it is dropped.
    """
    generators = current_generators()
    if len(generators) > 1 and len(like) % len(generators) == 0:
        parts = zip(like.chunk(len(generators)), generators, strict=True)
        return torch.cat([_keep_mask(part, p, draw_seed(generator)) for part, generator in parts])
    return _keep_mask(like, p, draw_seed(generators[0] if generators else None))


def _keep_mask(like: Tensor, p: float, seed: int) -> Tensor:
    if like.device.type != "cpu":
        return -(torch.rand(like.shape, generator=_generator(like.device, seed), device=like.device) >= p).to(
            torch.int8
        )
    words = np.random.SFC64(seed).random_raw((like.numel() + 3) // 4)
    drawn = torch.from_numpy(words.view(np.int16))[: like.numel()].view(like.shape)
    kept = torch.empty(like.shape, dtype=torch.int8)
    threshold = min(round(p * _LEVELS), _LEVELS - 1)  # _LEVELS itself would overflow 16 bits and keep everything
    return torch.ge(drawn, threshold - _LEVELS // 2, out=kept).neg_()


def _generator(device: torch.device, seed: int) -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def apply_mask(x: Tensor, mask: Tensor, out: Tensor | None = None) -> Tensor:
    """Return `x` with the dropped elements set to 0, written into `out` (which may be `x`) or into a new tensor."""
    result = torch.empty_like(x, memory_format=torch.contiguous_format) if out is None else out
    bits = _INTEGER[x.element_size()]
    torch.bitwise_and(x.view(bits), mask, out=result.view(bits))
    return result


def dropout(x: Tensor, p: float) -> Tensor:
    """Drop elements of `x` with probability `p` and divide the others by 1 - p; differentiable in `x`."""
    return x * (keep_mask(x, p) != 0) / (1 - p) if p else x
