"""Cheap dropout masks: random bits are compared with a threshold, and the mask is applied by a bitwise and.

Drawing with `bernoulli` and multiplying takes 12 to 19 % of a LoRA step on a processor. Here each element gets 16
random bits from NumPy's SFC64, and is kept if they, as an unsigned number, are at least 65,536 p; so p is exact to
1/65,536. The mask has one byte for each element: all bits are set where the element is kept, none where it is dropped.
To be applied, it is widened to the size of the element. The factor 1 / (1 - p) is left to the caller, which
multiplies by a scale anyway.

An accelerator computes the 16 bits of all elements in a few operations, however many seeds there are, because starting
operations for each row would take longer than they take. Torch's own generators do not suffice: which number they give
to an element depends on the size of the tensor and on the device.

The seed of each mask is drawn from the processor's generator, so `torch.manual_seed` determines it, and activation
checkpointing, which restores that generator, draws the same mask again. Within `masks_from` the seeds come from another
generator, which torch's activation checkpointing does not restore (`fast.recomputation` does).
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tsugiki.model.linear import to_device

_Words: TypeAlias = NDArray[np.uint64]
_LEVELS = 1 << 16
_INTEGER = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Bytes of an element -> the integer dtype of this size."""
_local = threading.local()


@contextmanager
def masks_from(*generators: torch.Generator) -> Iterator[None]:
    """Draw the seeds of this thread's masks from `generators` within the block, instead of torch's own generator.

    If threads shared torch's generator, their masks would depend on which thread draws first. With several generators,
    the first axis of a mask is divided into as many equal parts, and each part is drawn as if it were the only one. So
    rows have the same masks whether they are computed together or apart.
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


def keep_mask(like: Tensor, p: float) -> Tensor:
    """Draw a mask for `apply_mask` on the device of a tensor, in which each element is dropped with probability p < 1.

    The mask is int8 of the same shape: -1 (all bits set) where the element is kept, 0 where it is dropped.
    """
    generators: tuple[torch.Generator | None, ...] = current_generators() or (None,)
    if not like.dim() or len(like) % len(generators):
        generators = generators[:1]
    seeds = [int(torch.randint(1 << 62, (), generator=generator)) for generator in generators]
    if like.device.type != "cpu":
        return _keep_mask_on_accelerator(like, p, seeds)
    if len(seeds) == 1:
        return _keep_mask(like, p, seeds[0])
    return torch.cat([_keep_mask(part, p, seed) for part, seed in zip(like.chunk(len(seeds)), seeds, strict=True)])


def _keep_mask(like: Tensor, p: float, seed: int) -> Tensor:
    words = np.random.SFC64(seed).random_raw((like.numel() + 3) // 4)
    drawn = torch.from_numpy(words.view(np.int16))[: like.numel()].view(like.shape)
    kept = torch.empty(like.shape, dtype=torch.int8)
    return torch.ge(drawn, _threshold(p), out=kept).neg_()


def _keep_mask_on_accelerator(like: Tensor, p: float, seeds: Sequence[int]) -> Tensor:
    """Draw a mask whose first axis is divided into as many parts as there are seeds.

    Two elements get the upper 32 bits of a word a · c + b modulo 2^64: a and b are random numbers of the line (all axes
    but the last one), which follow from the seed of the part, and c is a random number of the place in the line. Such
    hashes of two c are independent unless these differ in the upper 31 bits only (Dietzfelbinger, 1996), and each line
    has its own a and b.
    """
    width = like.shape[-1] if like.dim() else 1
    lines, words = like.numel() // max(width, 1), (width + 1) // 2
    keys = _split_mix(seeds, 2 * lines // len(seeds))
    host = torch.from_numpy(np.concatenate((keys, _constants(words))).view(np.int64))
    numbers = to_device(host, like.device)
    a_and_b, c = numbers[: 2 * lines].view(lines, 2), numbers[2 * lines :]
    drawn = (a_and_b[:, :1] * c).add_(a_and_b[:, 1:]).view(torch.int16).view(lines, words, 4)[..., 2:]
    kept = torch.empty(lines, words, 2, dtype=torch.int8, device=like.device)
    torch.ge(drawn, _threshold(p), out=kept).neg_()
    if width % 2:
        kept = kept.view(lines, 2 * words)[:, :width].contiguous()
    return kept.view(like.shape)


def _threshold(p: float) -> int:
    """Return the smallest signed 16-bit number with which an element is kept."""
    return min(round(p * _LEVELS), _LEVELS - 1) - _LEVELS // 2  # _LEVELS itself would overflow and keep everything


@lru_cache(maxsize=64)
def _constants(count: int) -> _Words:
    return _split_mix([0], count)


def _split_mix(seeds: Sequence[int], count: int) -> _Words:
    """Return `count` random 64-bit numbers for each seed in turn, by SplitMix64 (Steele et al., 2014)."""
    x: _Words = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    x = x + np.array(seeds, np.uint64)[:, None]
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x.reshape(-1)


def apply_mask(x: Tensor, mask: Tensor, out: Tensor | None = None) -> Tensor:
    """Return `x` with the dropped elements set to 0, written into `out` (which may be `x`) or into a new tensor."""
    result = torch.empty_like(x, memory_format=torch.contiguous_format) if out is None else out
    bits = _INTEGER[x.element_size()]
    torch.bitwise_and(x.view(bits), mask, out=result.view(bits))
    return result


def dropout(x: Tensor, p: float) -> Tensor:
    """Drop elements of `x` with probability `p` and divide the others by 1 - p; differentiable in `x`."""
    return x * (keep_mask(x, p) != 0) / (1 - p) if p else x
