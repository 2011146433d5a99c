"""Measure the time of functions on this machine, and keep times in the cache for the next start."""

import platform
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from tsugiki.io.cache import kept

_decided: dict[str, bool] = {}
_lock = threading.RLock()


def is_faster(key: str, measure: Callable[[], dict[str, float]], name: str, other: str, gain: float = 1.0) -> bool:
    """Return whether `name` is more than `gain` times as fast as `other`, by `kept_seconds` of both.

    In a process, the answer stays the same.
    """
    decided = _decided.get(key)
    if decided is not None:
        return decided
    with _lock:  # all threads of a run wait for the same answer
        if key not in _decided:
            seconds = kept_seconds(key, measure)
            _decided[key] = gain * seconds[name] < seconds[other]
        return _decided[key]


def decide(key: str, answer: bool) -> None:
    """Set the answer of `is_faster` for this process, because a run that is resumed must compute as before."""
    _decided[key] = answer


def kept_seconds(key: str, measure: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Return measured times, name -> seconds, from the cache; if they are not in it, they are measured and kept.

    `key` is what was measured, with everything that the times depend on except the processor and the version of torch.
    """
    import torch

    seconds: dict[str, float] = kept("machine", f"{processor_name()}, torch {torch.__version__}, {key}", measure)
    return seconds


def processor_name() -> str:
    """Return the model of the processor, or its architecture if the model is not known."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def shortest_seconds(calls: Mapping[str, Callable[[], object]], repeats: int, most_seconds: float) -> dict[str, float]:
    """Call functions in turns, and return the shortest CPU time of each in seconds, by one thread.

    CPU time does not include other programs that run at the same time. There are `repeats` turns after one as a
    warm-up, and none after `most_seconds`.
    """
    import torch

    best = dict.fromkeys(calls, float("inf"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        started = time.thread_time()
        for turn in range(repeats + 1):
            for name, call in calls.items():
                begun = time.thread_time()
                call()
                if turn:
                    best[name] = min(best[name], time.thread_time() - begun)
            if turn and time.thread_time() - started > most_seconds:
                break
    finally:
        torch.set_num_threads(threads)
    return best
