"""Choose whether low-bit frozen layers multiply 8-bit integers or floats on this processor, whichever is faster.

Zen 4 multiplies integers twice as fast as bfloat16; a processor with AMX multiplies bfloat16 faster (docs/log.md).
Therefore both are measured once, in a fifth of a second, and the times are kept in the cache for the next start.
"""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import torch
from torch.nn import functional as F

from tsugiki.base import integer_products
from tsugiki.errors import TsugikiError
from tsugiki.io.cache import cache_folder
from tsugiki.io.json import read_json, write_json
from tsugiki.io.locks import locked
from tsugiki.io.processor import processor_name

_FILE = "product_seconds.json"
_ROWS, _WIDTH = 256, 2048
_REPEATS = 7
_MOST_SECONDS = 0.5
_decided: dict[torch.dtype, bool] = {}
_lock = threading.Lock()


def integers_are_faster(dtype: torch.dtype) -> bool:
    """Return whether an integer product, including the rounding of its rows, is faster than a product in `dtype`."""
    with _lock:  # all threads of a run wait for the same answer
        if dtype not in _decided:
            seconds = _kept_seconds(dtype)
            _decided[dtype] = seconds["int8"] < seconds["float"]
        return _decided[dtype]


def decide(dtype: torch.dtype, integers: bool) -> None:
    """Set the answer for this process, because a run that is resumed must compute in the same dtype as before."""
    _decided[dtype] = integers


def _kept_seconds(dtype: torch.dtype) -> dict[str, float]:
    """Return the times in seconds from the cache; if they are not in it, measure them and write them to it."""
    folder = cache_folder("machine")
    key = f"{processor_name()}, torch {torch.__version__}, {dtype}"
    with suppress(TsugikiError), locked(folder / ".lock"):  # processes that start together agree
        path = folder / _FILE
        kept = read_json(path) if path.exists() else {}
        if key not in kept:
            write_json(path, {**kept, key: measure(dtype)})
            kept = read_json(path)
        found = kept[key]
        if isinstance(found, dict) and all(isinstance(found.get(name), float) for name in ("int8", "float")):
            return found
    return measure(dtype)  # the cache cannot be written, or its file is damaged


def measure(dtype: torch.dtype) -> dict[str, float]:
    """Return the CPU seconds that one thread takes for a product in integers (`int8`) and in `dtype` (`float`).

    CPU time does not include other programs that run at the same time.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(_ROWS, _WIDTH, generator=generator).to(dtype)
    levels = torch.randint(-127, 128, (_WIDTH, _WIDTH), generator=generator).to(torch.int8)
    scale, weight = torch.ones(_WIDTH), levels.to(dtype)
    calls: dict[str, Callable[[], object]] = {
        "int8": partial(integer_products.product, x, [(levels, scale)], None, _WIDTH),
        "float": partial(F.linear, x, weight),
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _fastest(calls)
    finally:
        torch.set_num_threads(threads)


def _fastest(calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Call the functions in turns, and return the shortest time of each in seconds; the first turn is a warm-up."""
    best = dict.fromkeys(calls, float("inf"))
    started = time.thread_time()
    for turn in range(_REPEATS + 1):
        for name, call in calls.items():
            begun = time.thread_time()
            call()
            if turn:
                best[name] = min(best[name], time.thread_time() - begun)
        if turn and time.thread_time() - started > _MOST_SECONDS:
            break
    return best
