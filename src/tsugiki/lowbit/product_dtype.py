"""Choose whether low-bit frozen layers multiply 8-bit integers or floats on this processor, whichever is faster.

Zen 4 multiplies integers twice as fast as bfloat16; a processor with AMX multiplies bfloat16 faster (docs/log.md).
Therefore both are measured once, in a fifth of a second, and the times are kept in the cache for the next start.
"""

import threading
from collections.abc import Callable
from functools import partial

import torch
from torch.nn import functional as F

from tsugiki.io.measurements import kept_seconds, shortest_seconds
from tsugiki.lowbit import integer_products
from tsugiki.lowbit.threads import with_one_thread

_ROWS, _WIDTH = 256, 2048
_REPEATS = 7
_MOST_SECONDS = 0.5
_decided: dict[torch.dtype, bool] = {}
_lock = threading.Lock()


def integers_are_faster(dtype: torch.dtype) -> bool:
    """Return whether an integer product, including the rounding of its rows, is faster than a product in `dtype`."""
    with _lock:  # all threads of a run wait for the same answer
        if dtype not in _decided:
            seconds = kept_seconds(f"products, {dtype}", partial(measure, dtype))
            _decided[dtype] = seconds["int8"] < seconds["float"]
        return _decided[dtype]


def decide(dtype: torch.dtype, integers: bool) -> None:
    """Set the answer for this process, because a run that is resumed must compute in the same dtype as before."""
    _decided[dtype] = integers


def measure(dtype: torch.dtype) -> dict[str, float]:
    """Return the CPU seconds that one thread takes for a product in integers (`int8`) and in `dtype` (`float`)."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(_ROWS, _WIDTH, generator=generator).to(dtype)
    x[:, ::512] *= 100  # models have a few features that are much larger than the others, which take time as well
    levels = torch.randint(-127, 128, (_WIDTH, _WIDTH), generator=generator).to(torch.int8)
    scale, weight = torch.ones(_WIDTH), levels.to(dtype)
    calls: dict[str, Callable[[], object]] = {
        "int8": partial(integer_products.product, x, [(levels, scale)], None, _WIDTH),
        "float": partial(F.linear, x, weight),
    }
    with with_one_thread():
        return shortest_seconds(calls, _REPEATS, _MOST_SECONDS)
