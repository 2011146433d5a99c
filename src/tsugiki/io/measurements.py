"""Measure the time of functions on this machine, and keep times in the cache for the next start."""

import math
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import Any

from tsugiki.errors import TsugikiError
from tsugiki.io.cache import cache_folder
from tsugiki.io.json import read_json, write_json
from tsugiki.io.locks import locked
from tsugiki.io.processor import processor_name


def kept_seconds(
    file: str, key: str, names: Collection[str], measure: Callable[[], dict[str, float]]
) -> dict[str, float]:
    """Return measured times from the cache; if they are not in it, measure them and write them to it.

    Args:
        file: name of the JSON file below the cache folder `machine`.
        key: what was measured, with everything that the times depend on except the processor and the version of torch.
        names: the names of the times.
        measure: returns name -> seconds.
    """
    import torch

    path = cache_folder("machine") / file
    key = f"{processor_name()}, torch {torch.__version__}, {key}"
    with suppress(TsugikiError), locked(path.parent / ".lock"):  # processes that start together agree
        kept: dict[str, Any] = {}
        with suppress(TsugikiError):  # there is no file yet, or it is damaged
            kept = read_json(path)
        if not _are_times(kept.get(key), names):
            kept[key] = measure()
            write_json(path, kept)
        found: dict[str, float] = kept[key]
        return found
    return measure()  # the cache cannot be written


def _are_times(found: object, names: Collection[str]) -> bool:
    """Return whether a value from the cache has a time in seconds under each of these names."""
    times = [found.get(name) for name in names] if isinstance(found, dict) else [None]
    return all(isinstance(time, float) and 0 < time < math.inf for time in times)


def shortest_seconds(calls: Mapping[str, Callable[[], object]], repeats: int, most_seconds: float) -> dict[str, float]:
    """Call functions in turns, and return the shortest CPU time of each in seconds.

    CPU time does not include other programs that run at the same time.

    Args:
        calls: name -> a function that computes in the calling thread.
        repeats: number of turns, after one as a warm-up.
        most_seconds: end after the turn in which this time is exceeded.
    """
    best = dict.fromkeys(calls, float("inf"))
    started = time.thread_time()
    for turn in range(repeats + 1):
        for name, call in calls.items():
            begun = time.thread_time()
            call()
            if turn:
                best[name] = min(best[name], time.thread_time() - begun)
        if turn and time.thread_time() - started > most_seconds:
            break
    return best
